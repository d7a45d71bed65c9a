"""nae_monitor: reads what a deployed language model is computing, and raises alerts on it."""
