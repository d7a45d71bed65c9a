"""Decoding elsewhere: a serving process captures and screens, workers decode, judge and alert.

::

    serving process     outpost.py    what a serving process opens; its verdicts and stop orders
                        shipper.py    from the queue to workers, and what they answer
                        carrier.py    what it needs of a way to workers
                        links.py      all workers over ZeroMQ; link.py one: greeting, heartbeats
    worker process      worker.py     ``nae-monitor worker``
                        receiver.py   from serving processes into the pipeline, and the answers
    both                frame.py      the bytes; greetings.py, turns.py, orders.py what they say
                        ledgers.py    one request's ledger in two processes
"""

from nae_monitor.placement.carrier import Captured
from nae_monitor.placement.outpost import Outpost, open_outpost

__all__ = ["Captured", "Outpost", "open_outpost"]
