"""Which topic an alert goes to, and what is done about one that cannot be written to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection

from nae_monitor.sink_settings import KafkaSettings

# A topic of a route that failed so often is left for the sink's own, for so long.
TRIALS = 5
AVOID_S = 60.0


class RouteTopics:
    """A topic that nobody made must not keep every alert behind it from going out."""

    def __init__(
        self, settings: KafkaSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._own = settings.topic
        self._dead = settings.dead_letter_topic
        self._by_route = settings.topics
        self._clock = clock
        self._failures: Counter[str] = Counter()  # of routes' topics, in a row
        self._avoid_until_s: dict[str, float] = {}  # by topic

    @property
    def names(self) -> tuple[str, ...]:
        """Every topic that may be written to, the sink's own first."""
        dead = () if self._dead is None else (self._dead,)
        return tuple(dict.fromkeys((self._own, *self._by_route.values(), *dead)))

    def of_routes(self, routes: Collection[str]) -> tuple[str, ...]:
        """The topics that an alert's routes lead to, each once; "" is the sink's own."""
        return tuple(dict.fromkeys(self._by_route.get(route, "") for route in routes or ("",)))

    def now(self, topic: str) -> tuple[str, bool]:
        """Where an event meant for ``topic`` goes now, and whether that is a detour."""
        if self._clock() < self._avoid_until_s.get(topic, 0.0):
            return self._own, True
        return topic or self._own, False

    def failed(self, topics: Collection[str]) -> None:
        """Sends to these could not even begin."""
        if self._own in topics:  # then it is the brokers that are away
            self._failures.clear()
            self._avoid_until_s.clear()
            return
        for topic in topics:
            self._failures[topic] += 1
            if self._failures[topic] >= TRIALS:
                del self._failures[topic]
                self._avoid_until_s[topic] = self._clock() + AVOID_S

    def refused(self, topic: str) -> bool:
        """The brokers said that this client may not write there.

        Returns:
            whether the topic is left for the sink's own from now on, and was not before; the
            sink's own cannot be left.
        """
        if topic == self._own:
            return False
        was_left = self.now(topic)[1]
        self._avoid_until_s[topic] = self._clock() + AVOID_S
        return not was_left

    def acknowledged(self, topic: str) -> None:
        """The brokers took an event."""
        self._failures.pop(topic, None)
