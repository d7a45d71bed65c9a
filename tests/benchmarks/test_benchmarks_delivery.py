from __future__ import annotations

import numpy as np
import pytest
from delivery import claims_of, cost, outcome_table
from drills.alerts import alert, policy
from drills.drills import AWAY, KILLS, Outcome
from drills.throughput import Rates

from nae_monitor.alert.event import to_event


def outcome(state: str = KILLS, **fields: object) -> Outcome:
    return Outcome(state, accepted=100, cost_us=list(range(1, 101)), **fields)  # type: ignore[arg-type]


def held(outcomes: list[Outcome], rates: Rates) -> dict[str, bool | None]:
    return {claim.name: claim.holds for claim in claims_of(outcomes, rates)}


def test_one_missing_alert_is_a_broken_claim() -> None:
    rates = Rates([6000.0], [9000.0])
    assert held([outcome()], rates)[f"missing, {KILLS}"] is True
    assert held([outcome(missing=1)], rates)[f"missing, {KILLS}"] is False


def test_a_late_return_is_a_broken_claim() -> None:
    name, rates = "delivered after the broker's return", Rates([6000.0], [9000.0])
    assert held([outcome(AWAY, return_s=9.9)], rates)[name] is True
    assert held([outcome(AWAY, return_s=10.1)], rates)[name] is False


@pytest.mark.parametrize(
    ("sink", "client", "holds"),
    [(5000.0, 20_000.0, True), (4999.0, 20_000.0, False), (3000.0, 2900.0, True)],
)
def test_the_rate_is_held_to_5000_or_to_what_the_client_alone_does(
    sink: float, client: float, holds: bool
) -> None:
    assert held([], Rates([sink] * 3, [client] * 3))["delivered, one core"] is holds


def test_the_cost_is_the_percentile_of_all_calls_inside_its_interval() -> None:
    claim = cost(outcome(), 0.99, 300.0)
    assert claim.value == np.quantile(range(1, 101), 0.99)
    assert claim.low <= claim.value <= claim.high
    assert claim.holds


def test_an_alert_of_the_drills_is_found_again_by_its_number() -> None:
    event = to_event(policy().redact(alert(17)), policy())
    assert event.data["unmapped"]["nae.sequence"] == 17


def test_every_count_of_an_outcome_is_in_the_table() -> None:
    row = outcome(missing=1, repeats=2, reorderings=3, told_lost=4, return_s=5.0)
    cells = [next(iter(column.cells)) for column in outcome_table([row]).columns]
    assert cells == [KILLS, "100", "1", "4", "2", "3", "5.0 s", ""]
