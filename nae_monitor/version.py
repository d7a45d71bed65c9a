"""The package's own version, where it is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nae-monitor")
except PackageNotFoundError:  # run from a checkout that nobody installed
    __version__ = "0+unknown"
