"""The target model, the NLA pair with its contract, the decode engine, and the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nae_monitor.cli.checks.calibration import calibration
from nae_monitor.cli.checks.check import Check, problem_check, problem_checks
from nae_monitor.cli.checks.screen import screen
from nae_monitor.cli.network import unreachable
from nae_monitor.decode import AvCheckpoint, general_path, open_pair, verbalizer_weights
from nae_monitor.errors import ConfigurationError, Mark, ModelError, Problem, UnsupportedError
from nae_monitor.models import resolve_nla, resolve_target
from nae_monitor.models.cache import cache_directory, is_whole
from nae_monitor.models.encoder import EMBEDDED_ENCODERS, load_encoder
from nae_monitor.models.hub import is_hub_id
from nae_monitor.models.target import ALIASES
from nae_monitor.settings import NlaSettings, Settings

NOT_FETCHED = "not-fetched"
FETCH = "first use fetches it; to do it now: nae-monitor doctor --fetch"


def models(settings: Settings, *, fetch: bool) -> Iterator[Check]:
    """Every model that a start loads; without ``fetch`` nothing is downloaded."""
    yield from _target(settings.target.model, fetch)
    yield from _pair(settings, fetch)
    if settings.nla.engine != "torch":
        yield _engine(settings.nla.engine)
    yield from _encoder(settings.detect.encoder, fetch)


def _target(name: str, fetch: bool) -> list[Check]:
    try:
        directory = _local_target(name, fetch)
        width = _width(directory)
    except ConfigurationError as error:
        return _failed("target", error)
    return [Check("target", "ok", f"{name}: width {width}, {directory}")]


def _local_target(name: str, fetch: bool) -> Path:
    if not (fetch or _is_cached_target(name)):
        raise ModelError([Problem(Mark(name), "is not in the cache yet", FETCH, NOT_FETCHED)])
    return resolve_target(name)


def _is_cached_target(name: str) -> bool:
    if name in ALIASES:
        places = (cache_directory() / "models").glob(f"{name}-{ALIASES[name].version}-*")
        return any(is_whole(place) for place in places)
    return _is_local(name, "config.json")


def _is_local(name: str, file: str) -> bool:
    """Whether a name needs no hub: a directory, no hub id at all, or one in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).expanduser().is_dir() or name.startswith(("/", ".", "~", "embedded/")):
        return True
    return not is_hub_id(name) or isinstance(try_to_load_from_cache(name, file), str)


def _width(directory: Path) -> int:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        return int(config.get_text_config().hidden_size)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        message = f"config.json cannot be read ({type(error).__name__})"
        raise ModelError([Problem(Mark(str(directory)), message)]) from error


def _pair(settings: Settings, fetch: bool) -> list[Check]:
    """Both directories, their contracts, and that they fit the target's width."""
    try:
        av_dir, ar_dir = _local_nla(settings.nla.av, fetch), _local_nla(settings.nla.ar, fetch)
        width: int | None = None
        if fetch or _is_cached_target(settings.target.model):
            try:
                width = _width(resolve_target(settings.target.model))
            except ConfigurationError:
                width = None  # the target's own row says so
        av, ar = open_pair(
            av_dir, ar_dir, lambda name: _local_target(name, fetch), target_d_model=width
        )
    except ConfigurationError as error:
        return _failed("nla", error)
    what = f"{av.contract.nla_id}: layer {ar.contract.layer}, width {ar.contract.d_model}"
    check = Check("nla", "ok", f"{what}, {_reference(ar.reference is not None)}")
    return [
        check,
        *_path(av, settings.nla),
        *calibration(settings, av.contract.nla_id),
        *screen(settings, ar.contract.d_model, ar.contract.layer),
    ]


def _path(av: AvCheckpoint, nla: NlaSettings) -> list[Check]:
    """How the engine in this process will decode."""
    if nla.engine != "torch":
        return []
    try:
        reason, weights = general_path(av, nla), verbalizer_weights(av, nla)
    except UnsupportedError as error:
        mend = "set nla.device to auto or cpu, and nla.cpu_weights to float32"
        return [Check("engine", "fault", str(error), mend)]
    if reason is None:
        return [Check("engine", "ok", f"torch, by the fused pass, weights in {weights}")]
    what = f"torch, by the general, slower path, weights in {weights}: {reason}"
    return [Check("engine", "ok", what)]


def _reference(known: bool) -> str:
    return "FVE known" if known else "no fidelity reference: FVE stays unknown"


def _local_nla(name: str, fetch: bool) -> Path:
    if not (fetch or _is_local(name, "nla_meta.yaml")):
        raise ModelError([Problem(Mark(name), "is not in the cache yet", FETCH, NOT_FETCHED)])
    return resolve_nla(name)


def _engine(engine: str) -> Check:
    url = urlsplit(engine.partition(":")[2])
    port = url.port or (443 if url.scheme == "https" else 80)
    why = unreachable(url.hostname or "", port)
    if why:
        mend = f"start it; until then rows are dropped after {NlaSettings().timeout_s:.0f} s each"
        return Check("engine", "warning", f"{engine}: {why}", mend)
    return Check("engine", "ok", engine)


def _encoder(name: str | None, fetch: bool) -> list[Check]:
    if name is None:
        message = "none: semantic selections stay undecided"
        return [Check("encoder", "warning", message, "set detect.encoder")]
    if name in EMBEDDED_ENCODERS and not fetch:
        pin = EMBEDDED_ENCODERS[name]
        if not is_whole(cache_directory() / "encoders" / f"{pin.distribution}-{pin.version}"):
            return [Check("encoder", "warning", f"{name}: is not in the cache yet", FETCH)]
    try:
        load_encoder(name)
    except ConfigurationError as error:
        return problem_checks("encoder", error)
    return [Check("encoder", "ok", name)]


def _failed(name: str, error: ConfigurationError) -> list[Check]:
    """Faults; what only waits for its first download is a warning."""
    return [
        Check(name, "warning", f"{p.where}: {p.message}", p.mend)
        if p.code == NOT_FETCHED
        else problem_check(name, p)
        for p in error.problems
    ]
