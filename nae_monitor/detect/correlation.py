"""The state of aggregation rules over a live stream: bounded, and indifferent to late or repeated
samples.

Every rule keeps, for each of its groups, the samples it has seen in their own order (not that of
their arrival). A sample that comes twice changes nothing. One that comes late is put in its place
and the windows it falls into are judged again; an answer once given as a match is not taken back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from nae_monitor.detect.aggregation import (
    NO_MATCH,
    AggregationRule,
    Answer,
    Sample,
    judge_window,
    too_few,
)
from nae_monitor.records import FindingState

MAX_GROUPS = 10_000  # of one rule; the one that has waited longest for a sample goes first
MAX_GROUP_SAMPLES = 4_096  # the oldest goes first
MAX_SAMPLES = 200_000  # of one rule over all groups
LATENESS_WINDOWS = 2  # a time window's samples older than this many windows are let go

_Key = tuple[int, str, int, int]


@dataclass(frozen=True, slots=True)
class Firing:
    """An answer of one rule at one anchor."""

    rule: AggregationRule
    anchor: Sample
    answer: Answer


@dataclass(slots=True)
class _Group:
    """The samples of one group in their own order, and what was answered at each anchor."""

    keys: list[_Key] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    known: set[tuple[str, int, int]] = field(default_factory=set)
    answers: dict[tuple[str, int, int], Answer] = field(default_factory=dict)
    floor: _Key | None = None  # the newest sample that was let go
    opened: bool = False  # its first samples together were told to match


class Aggregation:
    """One rule's groups. ``counts`` tells what was repeated, late or let go.

    Not thread-safe; memory is bounded by ``max_groups`` and ``max_samples``.
    """

    def __init__(
        self,
        rule: AggregationRule,
        counts: Counter[str],
        *,
        max_groups: int = MAX_GROUPS,
        max_group_samples: int = MAX_GROUP_SAMPLES,
        max_samples: int = MAX_SAMPLES,
    ) -> None:
        self.rule = rule
        self._counts = counts
        self._max_groups = max_groups
        self._max_group_samples = max_group_samples
        self._max_samples = max_samples
        self._groups: OrderedDict[tuple[str, ...], _Group] = OrderedDict()
        self._size = 0
        self._watched = frozenset((*rule.rules, *rule.absent))

    @property
    def held_samples(self) -> int:
        """Samples in memory over all groups."""
        return self._size

    def add(self, sample: Sample) -> list[Firing]:
        """Take a sample; the answers that it changed, oldest anchor first."""
        rule = self.rule
        if not rule.needs_samples and (sample.hits | sample.unsure).isdisjoint(self._watched):
            return []
        if rule.window.unit == "time" and sample.captured_unix_ns <= 0:
            self._counts["no_time"] += 1
            why = "time: the capture time is not known"
            answer = Answer(FindingState.UNDECIDED, why)
            return [Firing(rule, sample, answer)] if rule.is_anchor(sample) else []
        group = self._group(sample)
        key = self._key(sample)
        if sample.identity in group.known:
            self._counts["repeated"] += 1
            return []
        if group.floor is not None and key <= group.floor:
            self._counts["late"] += 1
            why = "time: it came after its window was let go"
            answer = Answer(FindingState.UNDECIDED, why)
            return [Firing(rule, sample, answer)] if rule.is_anchor(sample) else []
        place = bisect_left(group.keys, key)
        group.keys.insert(place, key)
        group.samples.insert(place, sample)
        group.known.add(sample.identity)
        self._size += 1
        fired = self._judge_from(group, place)
        self._let_go(group)
        return fired

    def ended(
        self, request_id: str, started_unix_ns: int, fields: Mapping[str, str]
    ) -> tuple[int, Answer]:
        """What remains to be said when a request's turn is over, and at which position.

        Undecided where the last window of the turn, or any whole window inside it, holds fewer
        samples than the rule asks for: a count in there could not have been reached.
        """
        rule = self.rule
        if rule.min_samples <= 1:
            return 0, NO_MATCH
        group = self._groups.get(group_of(rule, request_id, fields), _Group())
        turn = (request_id, started_unix_ns)
        mine = [i for i, s in enumerate(group.samples) if (s.request_id, s.started_unix_ns) == turn]
        fewest = min(
            (
                index + 1 - self._start(group, index)
                for index in mine
                if index == mine[-1] or self._is_whole(group, index)
            ),
            default=0,
        )
        position = group.samples[mine[-1]].position if mine else 0
        if fewest >= rule.min_samples:
            return position, NO_MATCH
        return position, Answer(FindingState.UNDECIDED, too_few(fewest, rule))

    def _judge_from(self, group: _Group, first: int) -> list[Firing]:
        fired: list[Firing] = []
        # A sample that came before a waiting hit can end the wait of one whose window it is not in.
        waiting_end = min(len(group.keys), self.rule.min_samples + 1)
        for index in range(first, max(self._end(group, first), waiting_end)):
            anchor = group.samples[index]
            if not self._ends_a_window(group, index):
                continue
            opens = self._ends_the_opening(group, index)
            before = group.answers.get(anchor.identity, NO_MATCH)
            # A late sample moves where the opening ends; it is the same window nevertheless.
            if before.state is FindingState.MATCH or (opens and group.opened):
                continue
            answer = self._answer(group, index)
            if answer.state not in (before.state, FindingState.NO_MATCH):
                if opens and answer.state is FindingState.MATCH:
                    group.opened = not self.rule.is_anchor(anchor)
                group.answers[anchor.identity] = answer
                fired.append(Firing(self.rule, anchor, answer))
        return fired

    def _ends_a_window(self, group: _Group, index: int) -> bool:
        """Whether a window ends at ``index``: at a hit, and where enough samples are there at last.

        A hit among the first samples of a group waits for ``min_samples`` of them, so that a
        request is not left undecided for having begun with one. Where they do not come,
        :meth:`ended` says so; a window of time or of several requests, whose samples may be gone
        by then, does not wait. An ordered sequence ends at its last step and nowhere else.
        """
        rule = self.rule
        if index + 1 > rule.min_samples or not self._is_opening(group, index):
            return rule.is_anchor(group.samples[index])
        whole = index + 1 == rule.min_samples
        return whole and any(rule.is_anchor(sample) for sample in group.samples[: index + 1])

    def _is_opening(self, group: _Group, index: int) -> bool:
        """Whether the window that ends at ``index`` is of a group's first samples, and may wait."""
        rule = self.rule
        waits = rule.within_request and rule.window.unit != "time" and group.floor is None
        return waits and rule.type != "temporal_ordered" and self._start(group, index) == 0

    def _ends_the_opening(self, group: _Group, index: int) -> bool:
        return index + 1 == self.rule.min_samples and self._is_opening(group, index)

    def _answer(self, group: _Group, index: int) -> Answer:
        start = self._start(group, index)
        answer = judge_window(self.rule, group.samples[start : index + 1])
        if answer.state is not FindingState.MATCH and self._is_cut(group, index):
            return Answer(FindingState.UNDECIDED, "samples: older ones of the window were let go")
        return answer

    def _is_cut(self, group: _Group, index: int) -> bool:
        """Whether the window that ends at ``index`` reaches behind what is still held."""
        if group.floor is None:
            return False
        window = self.rule.window
        if window.unit == "samples":
            return index + 1 < window.size
        return group.keys[index][0] - window.size < group.floor[0]

    def _start(self, group: _Group, index: int) -> int:
        """The first sample of the window that ends at ``index``."""
        window = self.rule.window
        if window.unit == "samples":
            return max(0, index + 1 - window.size)
        oldest = group.keys[index][0] - window.size + 1
        return bisect_left(group.keys, oldest, 0, index, key=lambda key: key[0])

    def _end(self, group: _Group, index: int) -> int:
        """One past the last sample whose window holds ``index``."""
        window = self.rule.window
        if window.unit == "samples":
            return min(len(group.keys), index + window.size)
        newest = group.keys[index][0] + window.size - 1
        return bisect_right(group.keys, newest, index, key=lambda key: key[0])

    def _is_whole(self, group: _Group, index: int) -> bool:
        """Whether the window that ends at ``index`` lies inside what was seen of its group."""
        window = self.rule.window
        if window.unit == "samples":
            return index + 1 >= window.size
        return group.keys[index][0] - group.keys[0][0] >= window.size - 1

    def _key(self, sample: Sample) -> _Key:
        if self.rule.window.unit == "tokens":
            return sample.position, sample.request_id, sample.started_unix_ns, 0
        place = (sample.request_id, sample.started_unix_ns, sample.position)
        return sample.captured_unix_ns, *place

    def _group(self, sample: Sample) -> _Group:
        name = group_of(self.rule, sample.request_id, sample.fields)
        group = self._groups.setdefault(name, _Group())
        self._groups.move_to_end(name)
        while len(self._groups) > self._max_groups:
            self._drop_oldest_group()
        return group

    def _drop_oldest_group(self) -> None:
        _, group = self._groups.popitem(last=False)
        self._size -= len(group.samples)
        self._counts["groups_let_go"] += 1

    def _let_go(self, group: _Group) -> None:
        surplus = max(0, len(group.samples) - self._max_group_samples)
        if self.rule.window.unit == "time":
            horizon = group.keys[-1][0] - LATENESS_WINDOWS * self.rule.window.size
            old = bisect_left(group.keys, horizon, key=lambda key: key[0])
            self._forget(group, old)
            surplus = max(0, surplus - old)
        if surplus:
            self._counts["samples_let_go"] += surplus
            self._forget(group, surplus)
        while self._size > self._max_samples and len(self._groups) > 1:
            self._drop_oldest_group()

    def _forget(self, group: _Group, amount: int) -> None:
        if not amount:
            return
        group.floor = group.keys[amount - 1]
        for sample in group.samples[:amount]:
            group.known.discard(sample.identity)
            group.answers.pop(sample.identity, None)
        del group.keys[:amount], group.samples[:amount]
        self._size -= amount


def group_of(rule: AggregationRule, request_id: str, fields: Mapping[str, str]) -> tuple[str, ...]:
    """The group a request belongs to; one that lacks a key is a group of its own."""
    values = [fields.get(name, "") for name in rule.group_by]
    if all(values):
        return ("known", *values)
    return ("alone", request_id)
