"""TLS and SASL to the brokers: secrets come from the environment and go nowhere else."""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping
from typing import Any

from nae_monitor.alert.kafka_address import servers
from nae_monitor.errors import Mark, Problem
from nae_monitor.sink_settings import KafkaSaslSettings, KafkaSettings, KafkaTlsSettings


def security(settings: KafkaSettings, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What any client of kafka-python needs to know of TLS and SASL.

    Raises:
        OSError: a certificate or key cannot be read, or is none (:class:`ssl.SSLError`).
    """
    env = os.environ if environ is None else environ
    tls, sasl = settings.tls, settings.sasl
    if tls is None and sasl is None:
        return {}
    protocol = ("SASL_" if sasl else "") + ("SSL" if tls else "PLAINTEXT")
    options: dict[str, Any] = {"security_protocol": protocol}
    if tls is not None:
        options["ssl_context"] = tls_context(tls, env)
        options["ssl_check_hostname"] = tls.check_hostname
    if sasl is not None:
        _keep_secrets_out_of_the_log()
        options["sasl_mechanism"] = sasl.mechanism
        options["sasl_plain_username"] = env.get(sasl.username_env, "")
        options["sasl_plain_password"] = env.get(sasl.password_env, "")
    return options


def tls_context(tls: KafkaTlsSettings, environ: Mapping[str, str]) -> ssl.SSLContext:
    """TLS 1.2 or later, brokers verified.

    Raises:
        OSError: a file cannot be read, or is none of its kind.
    """
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.check_hostname = tls.check_hostname
    if tls.cert_file is not None:
        password = environ.get(tls.key_password_env or "", "")
        # Asked for by a function: without one OpenSSL would ask on the terminal.
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: password)
    return context


def _keep_secrets_out_of_the_log() -> None:
    """At DEBUG kafka-python logs every request, the one with the password among them."""
    logger = logging.getLogger("kafka")
    if logger.getEffectiveLevel() < logging.INFO or logger.level == logging.NOTSET:
        logger.setLevel(max(logging.INFO, logger.getEffectiveLevel()))


def problems_of_security(
    settings: KafkaSettings, where: Mark, environ: Mapping[str, str] | None = None
) -> list[Problem]:
    """What is wrong with the settings of TLS and SASL, as far as this machine can tell."""
    env = os.environ if environ is None else environ
    problems: list[Problem] = []
    if settings.tls is not None:
        problems += _tls_problems(settings.tls, where, env)
    if settings.sasl is not None:
        problems += _sasl_problems(settings.sasl, settings, where, env)
    return problems


def _tls_problems(tls: KafkaTlsSettings, where: Mark, env: Mapping[str, str]) -> list[Problem]:
    name = tls.key_password_env
    if name is not None and not env.get(name):
        return [_unset(name, "tls.key_password_env", where)]
    try:
        tls_context(tls, env)
    except OSError as error:
        files = [file for file in (tls.ca_file, tls.cert_file, tls.key_file) if file]
        message = f"tls: {reason_of(error)} ({', '.join(files)})"
        return [Problem(where, message, "name PEM files this user may read")]
    return []


def _sasl_problems(
    sasl: KafkaSaslSettings, settings: KafkaSettings, where: Mark, env: Mapping[str, str]
) -> list[Problem]:
    problems = [
        _unset(name, f"sasl.{key}", where)
        for key, name in (("username_env", sasl.username_env), ("password_env", sasl.password_env))
        if not env.get(name)
    ]
    if sasl.mechanism == "PLAIN" and settings.tls is None and not _stays_here(settings.bootstrap):
        message = "sasl PLAIN without tls would send the password readable"
        problems.append(Problem(where, message, "add tls: {}, or use SCRAM-SHA-512"))
    return problems


def _unset(name: str, key: str, where: Mark) -> Problem:
    return Problem(where, f"{key}: the environment variable {name} is not set", f"set {name}")


def _stays_here(bootstrap: str) -> bool:
    """Whether all of it goes to this machine."""
    return all(_is_loopback(server.rpartition(":")[0].strip("[]")) for server in servers(bootstrap))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reason_of(error: OSError) -> str:
    """The reason alone, without what the system or OpenSSL puts around it."""
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
