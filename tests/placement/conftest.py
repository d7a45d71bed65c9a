from alert_parts import broker, sleeping_broker

__all__ = ["broker", "sleeping_broker"]
