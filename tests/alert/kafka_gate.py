"""A gate in front of a broker: TLS, SASL, and topics that it closes.

The broker of the tests does neither TLS nor topic permissions; everything behind the gate is the
real one. Closed topics are made out of the broker's own answers, by the client's protocol classes.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kafka.protocol.metadata import MetadataResponse
from kafka.protocol.producer import ProduceResponse
from kafka.protocol.sasl import (
    SaslAuthenticateRequest,
    SaslAuthenticateResponse,
    SaslHandshakeResponse,
)
from kafka_gate_sasl import Login

MOST_BYTES = 100 * 1024 * 1024
PRODUCE, METADATA, HANDSHAKE, API_VERSIONS, AUTHENTICATE = 0, 3, 17, 18, 36
TOPIC_AUTHORIZATION_FAILED, UNKNOWN_TOPIC, SASL_AUTHENTICATION_FAILED = 29, 3, 58


@dataclass
class Gate:
    """Listens on ``port``; the broker must advertise that port."""

    broker_port: int
    port: int
    context: ssl.SSLContext | None = None
    users: dict[str, str] | None = None  # None: no SASL
    mechanism: str = "PLAIN"
    closed: dict[str, int] = field(default_factory=dict)  # by topic, the error code to answer
    answers: set[str] = field(default_factory=set)  # what it refused, for tests to look at

    def start(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, EOFError):
            if self.context is not None:
                client = self.context.wrap_socket(client, server_side=True)
            with socket.create_connection(("127.0.0.1", self.broker_port)) as broker:
                if self.users is None or self._let_in(client, broker):
                    self._pass_on(client, broker)
        client.close()

    def _let_in(self, client: socket.socket, broker: socket.socket) -> bool:
        login = Login(self.mechanism, self.users or {})
        while not login.is_over:
            request = read_frame(client)
            api, version, correlation = struct.unpack(">hhi", request[:8])
            if api == API_VERSIONS:  # may be asked by anybody
                broker.sendall(frame(request))
                client.sendall(frame(read_frame(broker)))
            elif api == HANDSHAKE:
                offer = SaslHandshakeResponse(error_code=0, mechanisms=[self.mechanism])
                answer(client, correlation, offer, version)
            elif api == AUTHENTICATE:
                asked = SaslAuthenticateRequest.decode(request, version=version, header=True)
                reply = login.answer(bytes(asked.auth_bytes))
                said = SaslAuthenticateResponse(
                    error_code=SASL_AUTHENTICATION_FAILED if reply is None else 0,
                    error_message=None,
                    auth_bytes=reply or b"",
                    session_lifetime_ms=0,
                )
                answer(client, correlation, said, version)
                if reply is None:
                    self.answers.add("password")
                    return False
            else:
                self.answers.add("not authenticated")
                return False
        return True

    def _pass_on(self, client: socket.socket, broker: socket.socket) -> None:
        while True:
            request = read_frame(client)
            broker.sendall(frame(request))
            reply = read_frame(broker)
            api, version = struct.unpack(">hh", request[:4])
            change: Callable[[bytes, int], bytes] | None = {
                METADATA: self._metadata,
                PRODUCE: self._produced,
            }.get(api)
            if change is not None and self.closed:
                # A flexible answer's header ends in a byte for its (absent) tagged fields.
                size = 5 if api == METADATA and MetadataResponse.flexible_version_q(version) else 4
                reply = reply[:size] + change(reply[size:], version)
            client.sendall(frame(reply))

    def _metadata(self, body: bytes, version: int) -> bytes:
        response = MetadataResponse.decode(body, version=version)
        for topic in response.topics:
            if topic.name in self.closed:
                topic.error_code, topic.partitions = self.closed[topic.name], []
                self.answers.add(topic.name)
        response._header = None
        encoded: bytes = response.encode(version=version)
        return encoded

    def _produced(self, body: bytes, version: int) -> bytes:
        response = ProduceResponse.decode(body, version=version)
        for topic in response.responses:
            for partition in topic.partition_responses:
                if topic.name in self.closed:
                    partition.error_code = self.closed[topic.name]
                    self.answers.add(topic.name)
        response._header = None
        encoded: bytes = response.encode(version=version)
        return encoded


def answer(client: socket.socket, correlation: int, response: Any, version: int) -> None:
    tags = b"\0" if type(response).flexible_version_q(version) else b""
    response._header = None
    body = response.encode(version=version)
    client.sendall(frame(struct.pack(">i", correlation) + tags + body))


def frame(data: bytes) -> bytes:
    return struct.pack(">i", len(data)) + data


def read_frame(source: socket.socket) -> bytes:
    (size,) = struct.unpack(">i", read_exactly(source, 4))
    if size > MOST_BYTES:  # as brokers do; the start of a TLS greeting reads so
        raise EOFError
    return read_exactly(source, size)


def read_exactly(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
