from alert_parts import broker, collector, health, receiver, sleeping_broker

__all__ = ["broker", "collector", "health", "receiver", "sleeping_broker"]
