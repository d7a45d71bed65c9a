"""The package's health as OpenTelemetry metrics, read when the host's reader asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from opentelemetry.metrics import CallbackOptions, Meter, Observation

Counters = Callable[[], Mapping[str, int]]
SinkStats = Callable[[], Mapping[str, Mapping[str, int]]]

# Health counter prefix -> (metric, attribute that carries the rest, description)
FAMILIES: Mapping[str, tuple[str, str, str]] = {
    "tokens.": ("nae.tokens", "nae.stage", "Tokens by the stage they reached"),
    "dropped.": ("nae.tokens.dropped", "nae.reason", "Tokens dropped by reason"),
    "failed.": ("nae.failures", "nae.component", "Failures kept away from the host"),
    "actions.": ("nae.actions", "nae.outcome", "Rules' actions by kind and what came of them"),
    "decode.cache.": (
        "nae.decode.cache",
        "nae.outcome",
        "Rows looked up among decodings made before",
    ),
    "screen.": ("nae.screen", "nae.event", "Rows that waited for a budget and what came of them"),
    "ipc.": ("nae.ipc", "nae.event", "Frames and links between servers and workers"),
    "activations.": ("nae.activations", "nae.event", "Frames on the topic of activations"),
    "placement.": (
        "nae.placement",
        "nae.event",
        "Turns, rows and frames that servers and workers could not place",
    ),
    "blind.": ("nae.blind", "nae.reason", "Passes of the model whose watched rows were not had"),
    "circuit_open.": ("nae.circuit.opened", "nae.component", "Parts switched off by failures"),
    "circuit_closed.": ("nae.circuit.closed", "nae.component", "Parts that came on again"),
    "alert.": ("nae.sink.alerts", "nae.outcome", "Alerts by sink and outcome"),
}

# What sinks count -> (metric, unit, description)
GAUGES: Mapping[str, tuple[str, str, str]] = {
    "pending": ("nae.sink.pending", "{alert}", "Alerts accepted and not yet delivered"),
    "outbox_events": ("nae.outbox.depth", "{event}", "Events waiting on disk"),
    "outbox_bytes": ("nae.outbox.size", "By", "Size of the events waiting on disk"),
    "outbox_oldest_s": ("nae.outbox.oldest_age", "s", "Age of the oldest event waiting on disk"),
}


def register_counters(
    meter: Meter, counters: Counters, sink_stats: SinkStats, gauges: Counters
) -> None:
    """Make the observable instruments; they hold on to the three callables."""
    for prefix, (name, attribute, description) in FAMILIES.items():
        meter.create_observable_counter(
            name,
            [_family(prefix, attribute, counters)],
            unit="{alert}" if prefix == "alert." else "{token}" if "tokens" in name else "1",
            description=description,
        )

    for count, (name, unit, description) in GAUGES.items():
        meter.create_observable_gauge(name, [_gauge(count, sink_stats)], unit, description)

    def lag(_: CallbackOptions) -> Iterable[Observation]:
        if "activations.lag_records" in gauges():
            yield Observation(gauges()["activations.lag_records"])

    meter.create_observable_gauge(
        "nae.activations.lag", [lag], "{record}", "Records on the topic that no worker has read yet"
    )


def _gauge(count: str, sink_stats: SinkStats) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for sink, stats in sink_stats().items():
            if count in stats:
                yield Observation(stats[count], {"nae.sink": sink})

    return observe


def _family(
    prefix: str, attribute: str, counters: Counters
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for name, value in counters().items():
            if name.startswith(prefix):
                yield Observation(value, {attribute: name.removeprefix(prefix)})

    return observe
