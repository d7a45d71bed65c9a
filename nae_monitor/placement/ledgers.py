"""One request's ledger kept by two processes: each tells the other its own part."""

from __future__ import annotations

from collections import Counter, OrderedDict

from nae_monitor.health import Health
from nae_monitor.placement.contents import Ledger, own_ledger

LIMIT = 10_000  # requests; the oldest is forgotten first, as Health forgets its ledger


class Ledgers:
    """What came from elsewhere, so that it is neither counted twice nor told back."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._taken: OrderedDict[str, dict[str, Counter[str]]] = OrderedDict()

    def own(self, request_id: str) -> Ledger:
        """This process's part of a ledger, from the request's beginning on."""
        counts = Counter(self._health.ledger(request_id))
        for taken in self._taken.get(request_id, {}).values():
            counts.subtract(taken)
        return own_ledger(counts)

    def forget(self, request_id: str) -> None:
        """The request's id begins anew."""
        self._taken.pop(request_id, None)

    def take(self, request_id: str, source: str, ledger: Ledger) -> None:
        """Add the part of ``source``, from the request's beginning on, to the request's ledger."""
        sources = self._taken.setdefault(request_id, {})
        self._taken.move_to_end(request_id)
        while len(self._taken) > LIMIT:
            self._taken.popitem(last=False)
        before = sources.get(source, Counter())
        sources[source] = Counter(ledger)
        more = {name: n - before[name] for name, n in ledger.items() if n > before[name]}
        if more:
            self._health.add_to_ledger(request_id, more)
