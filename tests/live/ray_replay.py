"""A replay on a local Ray cluster of two workers, one of which kills itself once, as a script.

Arguments: the recording, the run, a file that marks that a worker died, and how.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import ray
import torch
from replay_scenario import BATCH, SlowDecoder, WordJudge

from nae_monitor.health import Health
from nae_monitor.records import Decoding
from nae_monitor.replay import replay
from nae_monitor.replay.cluster import Job, workers


class MortalDecoder(SlowDecoder):
    """Dies on its fifth batch unless one of its kind did."""

    def __init__(self, mark: Path) -> None:
        super().__init__(delay_s=0.01)
        self.mark = mark

    def decode(self, vectors: torch.Tensor) -> list[Decoding]:
        if self.calls == 4 and not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(vectors)


class Loader:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, health: Health) -> tuple[MortalDecoder, WordJudge]:
        return MortalDecoder(self.mark), WordJudge()


def main(live: str, run: str, mark: str, stop_after: str) -> None:
    ray.init(
        num_cpus=3,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    job = Job((live,), Loader(Path(mark)), "redecode", BATCH, part_rows=BATCH)
    done = 0

    def progress(rows: int, total: int) -> None:
        nonlocal done
        done += 1
        if done == int(stop_after):
            os.kill(os.getpid(), signal.SIGKILL)

    replay(
        [live], run, decoder=SlowDecoder(), judge=WordJudge(), mode="redecode",
        batch_size=BATCH, part_rows=BATCH, suppress={}, manifest={"rules_sha256": "rules"},
        progress=progress, elsewhere=workers(job, count=2),
    )  # fmt: skip
    print("whole")


if __name__ == "__main__":
    main(*sys.argv[1:])
