"""Asks the brokers, once and briefly, whether a sink's settings can ever work.

A client of kafka-python tells a wrong password, a bad certificate and a broker that is away apart
in its log only; this asks in the client's own protocol and has an answer of its own for each.
Source: the Kafka protocol guide (SaslHandshake, SaslAuthenticate, Metadata).
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.metadata import MetadataRequest
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from nae_monitor.alert.kafka_address import servers
from nae_monitor.alert.kafka_security import reason_of, security
from nae_monitor.errors import Mark, Problem
from nae_monitor.sink_settings import KafkaSettings

LIMIT_S = 3.0  # of asking one broker, and of waiting for topics to be made
PAUSE_S = 0.1
METADATA_VERSION = 5  # of Kafka 1.0; brokers of version 4 still know it
RECEIVE_BYTES = 65536
PENDING = ("UnknownTopicOrPartitionError", "LeaderNotAvailableError")


class _RefusedError(Exception):
    """The broker answered, and what it said will not change by waiting."""


class _Conversation:
    """One connection, one request after another."""

    def __init__(self, server: str, options: Mapping[str, Any], end_s: float) -> None:
        self._end_s = end_s
        self._protocol = KafkaProtocol(client_id="nae-monitor")
        host, _, port = server.rpartition(":")
        host = host.strip("[]")
        self._socket = socket.create_connection((host, int(port)), timeout=self._left_s())
        try:
            context: ssl.SSLContext | None = options.get("ssl_context")
            if context is not None:
                self._socket = context.wrap_socket(self._socket, server_hostname=host)
        except BaseException:
            self._socket.close()
            raise

    def _left_s(self) -> float:
        return max(0.01, self._end_s - time.monotonic())

    def ask(self, request: Any) -> Any:
        """Send and return the answer; OSError where there is none in time."""
        self._protocol.send_request(request)
        self._socket.settimeout(self._left_s())
        self._socket.sendall(self._protocol.send_bytes())
        while True:
            self._socket.settimeout(self._left_s())
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError
            for _, response in self._protocol.receive_bytes(data):
                return response

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def problems_of(
    settings: KafkaSettings, where: Mark, environ: Mapping[str, str] | None = None
) -> list[Problem]:
    """What the brokers say will never work; nothing where none of them answers in time."""
    try:
        options = security(settings, os.environ if environ is None else environ)
    except OSError as error:
        return [Problem(where, f"tls: {reason_of(error)}", "name PEM files this user may read")]
    names = dict.fromkeys((settings.topic, *settings.topics.values()))
    if settings.dead_letter_topic is not None:
        names[settings.dead_letter_topic] = None
    for server in servers(settings.bootstrap):
        try:
            return _ask(server, options, names, where)
        except ssl.SSLCertVerificationError as error:
            mend = "name the authority that signed it in tls.ca_file"
            return [Problem(where, f"{server}: its certificate: {error.verify_message}", mend)]
        except ssl.SSLError as error:
            mend = "leave tls out, or name the brokers' TLS port"
            return [Problem(where, f"{server} does not do TLS: {reason_of(error)}", mend)]
        except _RefusedError as error:
            mend = "set the variables that sasl names to who may write to the topics"
            return [Problem(where, f"{server} {error}", mend)]
        except (OSError, kafka_errors.KafkaError, ValueError):
            continue  # away, or no answer that makes sense: the sink waits for it
    return []


def _ask(
    server: str, options: Mapping[str, Any], topics: Iterable[str], where: Mark
) -> list[Problem]:
    end_s = time.monotonic() + LIMIT_S
    talk = _Conversation(server, options, end_s)
    try:
        if "sasl_mechanism" in options:
            _authenticate(talk, options)
        faults = _topic_faults(talk, topics)
        while any(fault in PENDING for fault in faults.values()) and time.monotonic() < end_s:
            time.sleep(PAUSE_S)  # a topic that is being made
            faults = _topic_faults(talk, topics)
    finally:
        talk.close()
    return [_topic_problem(topic, fault, where) for topic, fault in faults.items() if fault]


def _authenticate(talk: _Conversation, options: Mapping[str, Any]) -> None:
    name = options["sasl_mechanism"]
    answer = talk.ask(SaslHandshakeRequest(mechanism=name, version=1))
    if name not in answer.mechanisms:
        offered = ", ".join(sorted(answer.mechanisms)) or "none"
        raise _RefusedError(f"does not do SASL {name} (it does: {offered})")
    mechanism = get_sasl_mechanism(name)(host="", **options)
    while not mechanism.is_done():
        answer = talk.ask(SaslAuthenticateRequest(mechanism.auth_bytes(), version=1))
        if answer.error_code:
            raise _RefusedError("refuses the user or the password")
        try:
            mechanism.receive(answer.auth_bytes)
        except KeyError as error:  # a broker that says so by SCRAM's own means, and not by Kafka's
            raise _RefusedError("refuses the user or the password") from error
        except (ValueError, kafka_errors.KafkaError) as error:
            raise _RefusedError("does not prove that it knows the password") from error
    if not mechanism.is_authenticated():
        raise _RefusedError("refuses the user or the password")


def _topic_faults(talk: _Conversation, topics: Iterable[str]) -> dict[str, str]:
    """By topic the name of the error, or an empty text; asking makes a topic where that is on."""
    Topic = MetadataRequest.MetadataRequestTopic  # noqa: N806 - a class
    request = MetadataRequest(
        topics=[Topic(name=name) for name in topics],
        allow_auto_topic_creation=True,
        version=METADATA_VERSION,
    )
    return {
        one.name: kafka_errors.for_code(one.error_code).__name__ if one.error_code else ""
        for one in talk.ask(request).topics
    }


def _topic_problem(topic: str, fault: str, where: Mark) -> Problem:
    if fault == kafka_errors.TopicAuthorizationFailedError.__name__:
        mend = "let this client describe and write to it"
        return Problem(where, f"topic {topic} is closed to this client", mend)
    if fault in PENDING:
        mend = "create it, or name another"
        return Problem(where, f"topic {topic} does not exist, and brokers do not make it", mend)
    return Problem(where, f"topic {topic} cannot be written to ({fault})", "name another topic")
