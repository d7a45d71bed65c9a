"""From captured rows to findings, alerts and verdicts: one queue, one background thread.

::

    belt.py             owns the queue and the thread, and ends them in order
    serving threads     serving.py    screen, start a copy, offer to the queue; never wait
                        landing.py    batches whose scores are still on the device
                        byte_queue    bounded in bytes
    background thread   worker.py     decode (decoding.py), judge; effects only through the gate
                        reuse.py      rows that need no decode of their own
                        acting.py     what rules' actions ask for, as far as configured
    serving threads     patience.py   rows that wait for the budget; asked again before each take
    both                follow_ups.py what a hit buys; holds the neighbours of chosen rows
                        requests.py   what is under way, and the verdicts
                        brake.py      which generations are to end; holds them only if configured
                        outcomes.py   counters, findings, alerts, recording (recorder.py)
                        blindness.py  the monitor's own alert when a part of it fails

What cannot be taken or done is counted by reason under ``dropped.*``, and no request with such a
loss is called clean. Per request: seen = screened + excluded + cached + dropped before the
screen; sampled = judged + dropped after it (:func:`nae_monitor.verdicts.is_balanced`).

Before the screen: ``not_captured``, ``listener_failed``, ``circuit_open`` (the capture stage's),
``screen_failed``, ``screen_circuit_open``, ``unknown_request``, ``closed``. After it:
``copy_failed``, ``queue_full``, ``expired``, ``bad_vector_width``, ``bad_vector_zero``,
``bad_vector_non_finite``, ``engine``, ``decode_failed``, ``decode_circuit_open``,
``judge_failed``, ``internal``, ``shutdown``, ``worker_ended``.
"""

from nae_monitor.pipeline.pipeline import Pipeline
from nae_monitor.pipeline.ports import AlertSink, Judging, Observer, OnDecision
from nae_monitor.pipeline.serving import Listener

__all__ = ["AlertSink", "Judging", "Listener", "Observer", "OnDecision", "Pipeline"]
