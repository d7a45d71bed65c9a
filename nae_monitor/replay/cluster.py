"""The parts of a replay decoded and judged by the workers of a Ray cluster.

The process that was started orders the rows, keeps what comes back in its journal and writes the
run, so the run is byte for byte that of one process, and goes on after either side was killed.
Ray moves parts to workers that are free, and gives those of a worker that died to another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nae_monitor.errors import ConfigurationError, EngineError, Mark, Problem
from nae_monitor.health import Health
from nae_monitor.recording import open_recordings
from nae_monitor.recording.privacy import Content, ContentFilter
from nae_monitor.replay.decoding import Mode, RowDecoder
from nae_monitor.replay.index import RowIndex
from nae_monitor.replay.journal import Judged, part_from_text, part_to_text
from nae_monitor.replay.judging import PART_ROWS, RowJudge
from nae_monitor.replay.plan import common_content
from nae_monitor.replay.ports import Decoder, Judge
from nae_monitor.replay.selection import Selection

WORKER_RESTARTS = 100  # of the whole job; what fails more often is not the machines' fault
Load = Callable[[Health], tuple[Decoder | None, Judge]]


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker must know; as given to :func:`nae_monitor.replay.replay`.

    ``paths`` are readable on every node and ``load`` is importable there. The key that content
    is hashed with is not sent: ``key`` gets it there.
    """

    paths: tuple[str, ...]
    load: Load
    mode: Mode
    batch_size: int
    where: str | None = None
    content: Content | None = None
    key: Callable[[], bytes | None] = lambda: None
    key_id: str | None = None  # of the key that all must have
    part_rows: int = PART_ROWS


class Worker:
    """Judges parts by their numbers; one a worker process."""

    def __init__(self, job: Job) -> None:
        health = Health()
        recordings = open_recordings(job.paths)
        selection = None if job.where is None else Selection(job.where, recordings)
        self._index = RowIndex(recordings, selection)
        decoder, judge = job.load(health)
        content = ContentFilter(job.content or common_content(recordings), job.key())
        if content.key_id != job.key_id:
            raise _refused("the key of hashed content is another here", "set it alike everywhere")
        rows = RowDecoder(decoder, job.mode, max(1, job.batch_size), health)
        self._judge = RowJudge(rows, judge, health, content)
        self._part_rows = job.part_rows

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Columns of part numbers and of judged parts as text."""
        numbers = [int(number) for number in batch["id"]]
        parts = [self._judge.part(self._index.part(n, self._part_rows)) for n in numbers]
        return {"part": numbers, "judged": [part_to_text(part) for part in parts]}


def workers(
    job: Job, *, address: str | None = None, count: int | None = None, gpus_each: float = 0.0
) -> Callable[[int, int], Iterator[list[Judged]]]:
    """Who judges parts on a Ray cluster, for ``elsewhere`` of :func:`nae_monitor.replay.replay`.

    Args:
        job: what to do.
        address: of a running cluster; None: one on this machine, for as long as it takes.
        count: workers; None: one a GPU where ``gpus_each`` is not 0, else one a core.
        gpus_each: GPUs that one worker takes.

    Raises:
        ConfigurationError: Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
        from ray.data import DataContext
    except ImportError:
        mend = "pip install 'nae-monitor[ray]'"
        raise _refused("ray is not installed", mend) from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody what is replayed
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            message = f"no Ray cluster at {address or 'this machine'}: {type(error).__name__}"
            raise _refused(message, "start one with `ray start --head`") from None
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    resources = ray.cluster_resources()
    each = resources.get("GPU", 0) / gpus_each if gpus_each else resources.get("CPU", 1)
    return lambda first, end: _judged(job, first, end, count or max(1, int(each)), gpus_each)


def _judged(job: Job, first: int, end: int, count: int, gpus: float) -> Iterator[list[Judged]]:
    import ray

    if first >= end:
        return
    dataset = ray.data.range(end, override_num_blocks=end).filter(expr=f"id >= {first}")
    options = {"num_gpus": gpus} if gpus else {"num_cpus": 1}
    done = dataset.map_batches(
        Worker,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        max_restarts=WORKER_RESTARTS,
        max_task_retries=-1,
        **options,
    )
    try:
        for number, row in enumerate(done.iter_rows(), start=first):
            if row["part"] != number:
                raise EngineError(f"the workers gave part {row['part']} for part {number}")
            yield part_from_text(row["judged"], f"part {number}")
    except ray.exceptions.RayTaskError as error:
        kind = type(error.cause).__name__
        raise EngineError(f"a worker failed for good ({kind}); what was judged is kept") from error


def _refused(message: str, mend: str) -> ConfigurationError:
    return ConfigurationError([Problem(Mark("--ray"), message, mend)])
