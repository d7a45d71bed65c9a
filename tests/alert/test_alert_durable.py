"""What a sink with an outbox does when the disk, the file or the event is at fault; heartbeats."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alert_parts import CANARIES, Broker, entry, make_alert, make_policy, wait_until
from cloudevents.v1.http import from_http
from kafka import KafkaConsumer
from ocsf_parts import assert_valid_ocsf

from nae_monitor.alert import event
from nae_monitor.alert.kafka import KafkaSink
from nae_monitor.alert.kafka_side_events import HEARTBEAT_TYPE, REASON_HEADER
from nae_monitor.alert.outbox import Outbox
from nae_monitor.alert.tail import KafkaTail
from nae_monitor.health import Health
from nae_monitor.settings import KafkaSettings
