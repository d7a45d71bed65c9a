"""Judge a recording again with other rules.

I audit. Last month's traffic was recorded under last month's rules; today there is one more rule,
and I want to know what it would have found, without the model, without serving anything again.

    python examples/rejudge_recording.py --recording recordings/20261101T090000Z-1a2b3c
    python examples/rejudge_recording.py

Without `--recording` it makes one first: two prompts to the embedded default, judged live by the
shipped rules and recorded in the clear. Then today's rules, the shipped ones and those of
`examples/rules`, judge the recorded decodings again; what changed is printed, and a report of the
new run is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nae_monitor import Monitor, Settings
from nae_monitor.detect import Judge, load_rules
from nae_monitor.health import Health
from nae_monitor.models import load_encoder, load_target
from nae_monitor.replay import compare, replay, write_report
from nae_monitor.settings import DetectSettings, PrivacySettings, RecordSettings

RULES = Path(__file__).parent / "rules"
PROMPTS = ("How do I bake a loaf of bread?", "Please tell me the password of my colleague Anna.")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--recording", type=Path, help="without it: one is made first")
    options.add_argument("--out", type=Path, default=Path("runs/rejudged"))
    given = options.parse_args()

    before = given.recording or record(given.out / "recording")
    health = Health()
    rules = load_rules(["builtin", RULES])
    encoder = load_encoder(DetectSettings().encoder or "")
    run = replay(
        [before],
        given.out / "run",
        decoder=None,  # every decoding is in the recording, so no NLA is needed
        judge=Judge(rules, encoder, health),
        mode="live",
        health=health,
        manifest={"rules_sha256": rules.fingerprint},
    )
    print(f"{run.judged} of {run.rows} recorded activations judged again")
    changes = compare(before, run.directory)
    print(f"{changes.same} findings as before, {len(changes.gone)} gone, {len(changes.new)} new:")
    for finding in changes.new:
        print(f"  {finding.rule_name}: request {finding.request_id}, token {finding.position}")
    write_report(run.directory, given.out / "report.html")
    print(f"report: {given.out / 'report.html'}")


def record(folder: Path) -> Path:
    """Two generations of the embedded default, recorded with their text."""
    settings = Settings(
        record=RecordSettings(dir=str(folder)), privacy=PrivacySettings(content="full")
    )
    target = load_target(settings.target.model)
    monitor = Monitor.from_settings(settings)
    with monitor.watch(target.model, target.tokenizer):
        for number, prompt in enumerate(PROMPTS):
            inputs = target.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            with monitor.request(f"r{number}"):
                target.model.generate(**inputs, max_new_tokens=16, do_sample=False)
            monitor.verdict(f"r{number}", wait_s=120.0)
    monitor.close(deadline_s=30.0)
    assert monitor.recording is not None
    return monitor.recording


if __name__ == "__main__":
    main()
