"""What every test may rely on, wherever the tests are started from."""

from __future__ import annotations

import signal

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests that
# interrupt a command would wait for ever. A handler here is back to the default in each child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
