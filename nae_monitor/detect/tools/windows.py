"""Aggregation rules over a corpus: what they say of its requests, whatever order it is read in."""

from __future__ import annotations

from collections.abc import Iterable

from nae_monitor.detect.aggregation import Sample as Row
from nae_monitor.detect.correlator import Correlator
from nae_monitor.detect.packs import RuleSet
from nae_monitor.detect.suppression import request_fields
from nae_monitor.records import Activation, Finding, FindingState, Request

Turn = tuple[str, int]  # request id, start in Unix ns
Names = frozenset[str]


def row_of(activation: Activation, matched: Names, undecided: Names) -> Row:
    """A judged sample as aggregation sees it, from the names of the rules that answered."""
    request = activation.request
    return Row(
        request.request_id,
        request.started_unix_ns,
        activation.position,
        activation.captured_unix_ns,
        request_fields(request),
        matched,
        undecided,
    )


def names_by_state(findings: Iterable[Finding]) -> tuple[Names, Names]:
    """The names of the rules that matched, and of those that could not decide."""
    every = list(findings)
    matched = frozenset(f.rule_name for f in every if f.state is FindingState.MATCH)
    return matched, frozenset(f.rule_name for f in every if f.state is FindingState.UNDECIDED)


class CorpusWindows:
    """Feeds judged samples to the aggregation rules in the order of their capture.

    Where every rule groups by request, only the rows of one request are held at a time: they
    should stand together in the corpus. Otherwise one small row a sample is held to the end.
    """

    def __init__(self, rules: RuleSet) -> None:
        self._correlator = Correlator(lambda: rules)
        self._active = any(rule.enabled for rule in rules.aggregations)
        self._rows: list[Row] = []
        self._requests: dict[Turn, Request] = {}

    def take(self, activation: Activation, matched: Names, undecided: Names) -> list[Finding]:
        """Take a sample; the findings on requests that are over with it, usually none."""
        if not self._active:
            return []
        turn = activation.request.request_id, activation.request.started_unix_ns
        over: list[Finding] = []
        if turn not in self._requests and not self._correlator.across_requests:
            over = self.finish()
        self._requests[turn] = activation.request
        self._rows.append(row_of(activation, matched, undecided))
        return over

    def finish(self) -> list[Finding]:
        """The findings on everything held; a turn ends behind its last sample."""
        self._rows.sort(key=lambda row: (row.captured_unix_ns, *row.identity))
        last = {_turn(row): number for number, row in enumerate(self._rows)}
        found: list[Finding] = []
        for number, row in enumerate(self._rows):
            found += self._correlator.add(row)
            if last[_turn(row)] == number:
                found += self._correlator.ended(self._requests[_turn(row)])
        self._rows.clear()
        self._requests.clear()
        return found


def _turn(row: Row) -> Turn:
    return row.request_id, row.started_unix_ns
