from alert_parts import (
    broker,
    collector,
    health,
    receiver,
    sleeping_broker,
    sleeping_collector,
)

__all__ = ["broker", "collector", "health", "receiver", "sleeping_broker", "sleeping_collector"]
