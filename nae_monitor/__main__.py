"""``python -m nae_monitor``, for launchers that start modules."""

from nae_monitor.cli import main

main()
