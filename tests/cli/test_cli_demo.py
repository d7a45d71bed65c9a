from __future__ import annotations

from collections import Counter

from nae_monitor.cli.demo import MONITORED, SPEED_EVERY, VARIANTS, _variants, demo_prompts


def test_the_demo_has_twelve_ordinary_and_twelve_other_whole_prompts() -> None:
    prompts = demo_prompts()
    assert Counter(p["kind"] == "ordinary" for p in prompts) == {True: 12, False: 12}
    assert all(set(p) == {"kind", "prompt"} for p in prompts)
    assert all(p["prompt"][-1] in ".?!" for p in prompts)
    assert len({p["prompt"] for p in prompts}) == 24


def test_every_prompt_is_monitored_and_the_timed_ones_take_turns() -> None:
    orders = [_variants(n) for n in range(24)]
    assert all(MONITORED in order for order in orders)
    timed = orders[::SPEED_EVERY]
    assert all(sorted(order) == sorted(VARIANTS) for order in timed)
    assert {order[0] for order in timed} == set(VARIANTS)
