"""What a serving process keeps of the monitor when workers decode: capture's listener, the screen.

::

    outpost = open_outpost(settings, health)
    listener = outpost.listener()            # for a tap
    outpost.brake.should_stop(request_id)    # a rule in a worker asked for it
    verdict = outpost.verdict(request_id, wait_s=5.0)
    outpost.close(deadline_s=10.0)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console

from nae_monitor.alert import Sinks, build_sinks
from nae_monitor.decode import read_ar_contract
from nae_monitor.detect import RuleSet
from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.health import Health
from nae_monitor.models import resolve_nla
from nae_monitor.pipeline.assembly import Shared, build_serving
from nae_monitor.pipeline.belt import Belt
from nae_monitor.pipeline.serving import Listener
from nae_monitor.placement.carrier import Captured, Carrier
from nae_monitor.placement.shipper import ServingAftermath, Shipper
from nae_monitor.records import Verdict
from nae_monitor.screen import SamplingScreen
from nae_monitor.screening import directions_for, screen_of
from nae_monitor.settings import Settings
from nae_monitor.token_text import TokenText
from nae_monitor.verdicts import fold_verdicts

NO_TEXT = TokenText(None)  # texts are the workers'
SINKS_SHARE = 0.2  # of a deadline, kept for delivering the monitor's own alerts
LOOK_S = 0.01
AMENDS = "start a worker: nae-monitor worker --config FILE"


class Outpost(Belt):
    """Capture, screen and a queue bounded in bytes; turns leave for workers that judge them.

    What workers find comes back: :meth:`verdict` is computed from both processes' counts, and an
    order to stop reaches :attr:`brake`. What they cannot tell is undecided, never clean. The
    monitor's own alerts (no worker, a worker refused) go out by this process's sinks.

    Args:
        settings: the whole configuration.
        health: the counters that the tap counts into as well.
        captured: what the tap captures.
        sinks: take the monitor's own alerts; closed with the outpost.
        way: to the workers.
        screen: chooses rows, in the serving thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        *,
        captured: Captured,
        sinks: Sinks,
        way: Carrier,
        screen: SamplingScreen,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layer, self.d_model = captured.layer, captured.d_model
        self._sinks = sinks
        self._way = way
        shared = Shared(
            settings,
            health,
            sinks=sinks,
            clock=clock,
            rules=lambda: RuleSet.of(()),
            nla_id=settings.nla.av,
        )
        shipper = Shipper(health, shared, carrier=way, screen=screen)
        super().__init__(
            health,
            shared,
            serving=build_serving(
                settings,
                health,
                shared,
                screen=screen,
                clock=clock,
                start_worker=self._start_worker,
            ),
            work=shipper,
            aftermath=ServingAftermath(health, shared, shipper),
        )

    def listener(self, text: TokenText = NO_TEXT) -> Listener:
        """What a tap tells to; texts are made by the workers."""
        return super().listener(text)

    def judged(self, request_id: str, wait_s: float) -> Verdict:
        """One verdict of all sequences of a request; undecided where it is unknown."""
        return fold_verdicts(request_id, self.verdict(request_id, wait_s))

    def sink_stats(self) -> Mapping[str, Mapping[str, int]]:
        """Accepted, delivered and dropped alerts of each sink of this process."""
        return self._sinks.stats()

    def state(self) -> dict[str, str]:
        """Of each worker: ``ready``, or ``away: WHY``, or ``refused: WHY``."""
        return self._way.states()

    def refuse(self, why: str) -> None:
        """Tell by a critical alert that capture is blind; ``why`` must hold no content."""
        self._blindness.failed("capture", why)

    def wait_for_workers(self, wait_s: float) -> list[str]:
        """Wait until every worker has answered, at most ``wait_s``.

        Returns:
            Why monitoring cannot start; [] where at least one worker is ready.
        """
        end_s = time.monotonic() + wait_s
        while not self._way.is_answered() and time.monotonic() < end_s:
            time.sleep(LOOK_S)
        states = self._way.states()
        if "ready" in states.values():
            return []
        return [f"{name}: {state}" for name, state in states.items()]

    def close(self, deadline_s: float = 10.0) -> bool:
        """Wait for the outcomes of what was shipped, deliver alerts, disconnect.

        Returns:
            True if nothing was left undone.
        """
        end_s = time.monotonic() + deadline_s
        done = super().close(deadline_s * (1 - SINKS_SHARE))
        left_s = max(SINKS_SHARE * deadline_s, end_s - time.monotonic())
        return self._sinks.close(left_s) and done


def open_outpost(
    settings: Settings,
    health: Health | None = None,
    *,
    captured: Captured | None = None,
    console: Console | None = None,
) -> Outpost:
    """Start the half of the monitor that a serving process keeps.

    Loads no model and no rule: of the NLA pair only the reconstructor's sidecar is read. With
    ``capture.on_failure: serve`` it starts also where no worker is there, tells by a critical alert
    that the monitor is blind, and takes workers on as they come.

    Args:
        settings: the whole configuration; its placement is not ``inline``.
        health: the counters that the tap counts into; fresh ones where none are given.
        captured: what the tap captures; by default what the NLA pair reads.
        console: the console to print alerts on.

    Raises:
        ConfigurationError: the sinks, the pair's sidecar, actions that the placement cannot carry
            out, an unsafe socket directory, and, unless it serves all the same, no worker.
    """
    health = health or Health()
    problems = [*unfit_actions(settings)]
    screen: SamplingScreen | None = None
    sinks: Sinks | None = None
    way: Carrier | None = None
    try:
        captured = captured or captured_by(settings)
        directions = directions_for(settings, captured.d_model, captured.layer)
        screen = screen_of(settings, directions)
    except ConfigurationError as error:
        problems += error.problems
    try:
        sinks = build_sinks(settings.alert, settings.privacy, health, console=console)
    except ConfigurationError as error:
        problems += error.problems
    if captured is not None and not problems:
        try:
            way = open_way(settings, captured, health)
        except ConfigurationError as error:
            problems += error.problems
    if problems or sinks is None or captured is None or way is None or screen is None:
        if sinks is not None:
            sinks.close(1.0)
        raise ConfigurationError(problems)
    outpost = Outpost(settings, health, captured=captured, sinks=sinks, way=way, screen=screen)
    _insist(outpost, settings)
    return outpost


def captured_by(settings: Settings) -> Captured:
    """What the configured pair reads.

    Raises:
        ConfigurationError: the pair is not there, or its sidecar is broken.
    """
    contract = read_ar_contract(resolve_nla(settings.nla.ar))
    return Captured(settings.target.model, contract.layer, contract.d_model)


def unfit_actions(settings: Settings) -> list[Problem]:
    """Actions that cannot be carried out where decoding is elsewhere."""
    actions, placement = settings.actions, settings.capture.placement
    found: list[Problem] = []
    if actions.stop_generation == "enforce" and actions.hold_s > 0 and placement != "inline":
        message = "a generation cannot be held for a judgement made in another process"
        mend = "set it to 0, or capture.placement to inline"
        found.append(Problem(Mark("actions.hold_s"), message, mend))
    if placement == "kafka" and actions.stop_generation == "enforce":
        message = "orders to stop cannot travel back over kafka"
        mend = "set it to shadow, or capture.placement to ipc or inline"
        found.append(Problem(Mark("actions.stop_generation"), message, mend))
    if placement == "kafka" and actions.raise_sampling:
        message = "what rules ask of the screen cannot travel back over kafka"
        mend = "set it to false, or capture.placement to ipc or inline"
        found.append(Problem(Mark("actions.raise_sampling"), message, mend))
    budget = settings.screen.budget
    if placement != "inline" and (budget.neighbours or budget.resamples):
        message = "what follows a hit is bought where decoding is inline only"
        instead = {
            "ipc": "and let rules raise the sampling instead",
            "kafka": "or capture.placement to inline",
        }
        mend = f"set neighbours and resamples to 0, {instead[placement]}"
        found.append(Problem(Mark("screen.budget"), message, mend))
    return found


def open_way(settings: Settings, captured: Captured, health: Health) -> Carrier:
    """The way to the workers that the placement asks for; it is not open yet.

    Raises:
        ConfigurationError: a package is missing, or it is unsafe to connect.
    """
    place = Mark(f"capture.placement {settings.capture.placement}")
    way = _way(settings, captured, health)
    unsafe = way.unsafe()
    if unsafe:
        raise ConfigurationError([Problem(place, why) for why in unsafe])
    return way


def _way(settings: Settings, captured: Captured, health: Health) -> Carrier:
    if settings.capture.placement == "kafka":
        from nae_monitor.placement.topic import Topic

        return Topic(captured, settings.activations, health, time.monotonic)
    try:
        from nae_monitor.placement.links import Links
    except ImportError as error:
        place, mend = Mark("capture.placement ipc"), "pip install nae-monitor[ipc]"
        raise ConfigurationError([Problem(place, "pyzmq is not installed", mend)]) from error
    return Links(captured, settings.ipc, health, time.monotonic)


def _insist(outpost: Outpost, settings: Settings) -> None:
    """Wait for a worker; refuse to start without one, where the configuration asks for that."""
    faults = outpost.wait_for_workers(settings.ipc.connect_s)
    if faults and settings.capture.on_failure == "refuse":
        outpost.close(0.5)
        place = Mark(f"capture.placement {settings.capture.placement}")
        raise ConfigurationError([Problem(place, fault, AMENDS) for fault in faults])
