"""``transformers serve --continuous-batching`` with a monitor, as a program of the operator's own.

Usage: serve_transformers.py MODEL CONFIG PORT. Prints ``ready``; ends when its input is closed.
"""

from __future__ import annotations

import sys

from transformers.cli.serve import Serve

from nae_monitor import Monitor


def main(model: str, config: str, port: int) -> None:
    monitor = Monitor.from_yaml(config)
    server = Serve(
        force_model=model, continuous_batching=True, non_blocking=True, device="cpu",
        dtype="float32", host="127.0.0.1", port=port, cb_num_blocks=64, cb_max_batch_tokens=48,
    )  # fmt: skip
    (served,) = server._model_manager.loaded_models.values()
    with monitor.watch(served.model, served.processor):
        print("ready", flush=True)
        sys.stdin.read()
        server.kill_server()
    print("closed" if monitor.close(deadline_s=120.0) else "cut short", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
