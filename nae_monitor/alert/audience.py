"""Whom a sink is for, by routes, tags and tenants."""

from __future__ import annotations

from dataclasses import dataclass

from nae_monitor.records import Alert
from nae_monitor.sink_settings import SinkOptions


@dataclass(frozen=True, slots=True)
class Audience:
    """An alert is meant for it by one of each kind that is named; an empty kind asks nothing."""

    routes: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()

    @property
    def is_everyone(self) -> bool:
        """Whether every alert is meant for it."""
        return not (self.routes or self.tags or self.tenants)

    def includes(self, alert: Alert) -> bool:
        """Whether the alert is meant for it."""
        return (
            (not self.routes or not self.routes.isdisjoint(alert.routes))
            and (not self.tags or not self.tags.isdisjoint(alert.tags))
            and (not self.tenants or alert.request.tenant in self.tenants)
        )


EVERYONE = Audience()


def audience_of(options: SinkOptions | None) -> Audience:
    """Whom the sink with these options is for."""
    if options is None:
        return EVERYONE
    return Audience(frozenset(options.routes), frozenset(options.tags), frozenset(options.tenants))
