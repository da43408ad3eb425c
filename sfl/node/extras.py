"""Packages that only an extra brings, asked for by name where a setting needs one."""

from __future__ import annotations

import importlib.util

from sfl.errors import ConfigError


def require_bitsandbytes(field: str, quantised: str) -> None:
    """Raise ConfigError where `field` asks for a quantised base that nothing here can make."""
    if quantised not in ("none", "auto") and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            field,
            quantised,
            "bitsandbytes is not installed",
            "Install it with `pip install 'sfl[quantised]'`, or remove the setting.",
        )


def require_cryptography(field: str) -> None:
    """Raise ConfigError where something is to be signed or checked and nothing here can."""
    if importlib.util.find_spec("cryptography") is None:
        raise ConfigError(
            field,
            True,
            "cryptography is not installed",
            "Install it with `pip install cryptography`; an edge does not need it.",
        )


def require_opentelemetry(field: str, endpoint: str) -> None:
    """Raise ConfigError where traces are to be sent and nothing here can."""
    # The first alone may be there by itself; to look for a part imports what it is a part of.
    parts = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter")
    if any(importlib.util.find_spec(part) is None for part in parts):
        raise ConfigError(
            field,
            endpoint,
            "OpenTelemetry is not installed",
            "Install it with `pip install 'sfl[otel]'`, or remove the setting.",
        )


def require_s3(field: str, url: str) -> None:
    """Raise ConfigError where a bucket is named and nothing here can talk to it."""
    if importlib.util.find_spec("s3fs") is None:
        raise ConfigError(
            field,
            url,
            "s3fs is not installed",
            "Install it with `pip install 'sfl[s3]'`, or remove the setting.",
        )


def require_postgres(field: str, url: str) -> None:
    """Raise ConfigError where a PostgreSQL server is named and nothing here can talk to it."""
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(
            field,
            url,
            "psycopg is not installed",
            "Install it with `pip install 'sfl[postgres]'`, or remove the setting.",
        )
