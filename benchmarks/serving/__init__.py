"""A server with and without the monitor: processes, clients, what they measure."""
