"""Schemas by id from a schema registry over HTTP (Confluent's interface, which others implement too)."""

import base64
import json
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from streaming.config import StreamConfig, StreamSettingError

_TIMEOUT_S = 10.0
_RETRY_S = 0.5
_UNKNOWN_FOR_S = 60.0
_NOT_FOUND = 404
_LONGEST_ANSWER = 16_777_216
_MOST_REFERENCES = 100
_log = logging.getLogger(__name__)


class RegistryUnavailable(RuntimeError):
    """The schema registry does not answer or refuses; names its address and the setting."""


class UnknownSchema(ValueError):
    """The registry has no schema of this id, or not all that it refers to."""


@dataclass
class Registered:
    """A schema.

    Attributes:
        kind: AVRO, PROTOBUF or JSON.
        text: as registered.
        references: texts of the schemas that it refers to, by the name that it uses; each comes after those that it
            refers to itself.
    """

    kind: str
    text: str
    references: dict[str, str] = field(default_factory=dict)


class SchemaRegistry:
    """A client that asks for each schema once.

    Args:
        config: `schema_registry` is its address; user, password, and authorities of certificates are optional.
    Raises:
        StreamSettingError: the file of authorities cannot be read.
    """

    def __init__(self, config: StreamConfig) -> None:
        self._config = config
        self._known: dict[int, Registered] = {}
        self._unknown: dict[int, tuple[float, str]] = {}
        self._tls = _tls(config)

    def schema(self, number: int) -> Registered:
        """The schema of an id; waits up to `stream.broker_patience_s` for a registry that does not answer.

        Raises:
            UnknownSchema: there is none; asked again only after a minute.
            RegistryUnavailable: it did not answer for so long, or refused.
        """
        if number in self._known:
            return self._known[number]
        until, why = self._unknown.get(number, (0.0, ""))
        if time.monotonic() < until:
            raise UnknownSchema(why)
        try:
            found = self._asked(f"schemas/ids/{number}")
            if found is None:
                raise UnknownSchema(f"schema {number} is not in the registry {self._where}")
            references: dict[str, str] = {}
            self._follow(number, found, references, ())
        except UnknownSchema as error:
            self._unknown[number] = time.monotonic() + _UNKNOWN_FOR_S, str(error)
            raise
        kind = str(found.get("schemaType") or "AVRO")
        self._known[number] = Registered(kind, str(found["schema"]), references)
        return self._known[number]

    def _follow(
        self, number: int, found: dict[str, Any], references: dict[str, str], above: tuple[str, ...]
    ) -> None:
        """Add all that a schema refers to, the innermost first."""
        for one in found.get("references") or ():
            name, subject, version = (str(one.get(key)) for key in ("name", "subject", "version"))
            if name in references:
                continue
            if name in above or len(references) + len(above) >= _MOST_REFERENCES:
                raise UnknownSchema(f"schema {number} refers to itself, or to too many schemas, by {name!r}")
            inner = self._asked(f"subjects/{quote(subject, safe='')}/versions/{quote(version, safe='')}")
            if inner is None:
                raise UnknownSchema(
                    f"schema {number} refers to version {version} of {subject!r}, which is not in the registry "
                    f"{self._where}"
                )
            self._follow(number, inner, references, (*above, name))
            references[name] = str(inner["schema"])

    def _asked(self, path: str) -> dict[str, Any] | None:
        until = time.monotonic() + self._config.broker_patience_s
        request, waits = self._request(path), False
        while True:
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=self._tls) as answer:
                    found: dict[str, Any] = json.loads(answer.read(_LONGEST_ANSWER))
                    return found
            except urllib.error.HTTPError as error:
                if error.code == _NOT_FOUND:
                    return None
                if error.code < 500 or time.monotonic() > until:
                    raise self._unavailable(error) from error
                problem: Exception = error
            except (OSError, ValueError) as error:
                if time.monotonic() > until or _is_of_certificate(error):
                    raise self._unavailable(error) from error
                problem = error
            if not waits:
                _log.warning("waiting for the schema registry %s: %s", self._where, problem)
            waits = True
            time.sleep(_RETRY_S)

    def _request(self, path: str) -> urllib.request.Request:
        config = self._config
        request = urllib.request.Request(f"{config.schema_registry.rstrip('/')}/{path}")
        if config.schema_registry_user:
            name = config.schema_registry_password_env
            if name and name not in os.environ:
                raise StreamSettingError(
                    f"stream.schema_registry_password_env names the environment variable {name!r}, which is not set"
                )
            pair = f"{config.schema_registry_user}:{os.environ.get(name, '')}"
            # Not sent to where an answer redirects to.
            request.add_unredirected_header(
                "Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}"
            )
        return request

    @property
    def _where(self) -> str:
        """The address without user and password."""
        parts = urlsplit(self._config.schema_registry)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"

    def _unavailable(self, error: Exception) -> RegistryUnavailable:
        change = "stream.schema_registry, stream.schema_registry_user"
        if _is_of_certificate(error):
            change = "stream.schema_registry_cafile"
        elif isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
            change = "stream.schema_registry_user, stream.schema_registry_password_env"
        return RegistryUnavailable(
            f"the schema registry {self._where} cannot be used: {error} (settings: {change})"
        )


def _tls(config: StreamConfig) -> ssl.SSLContext | None:
    if not config.schema_registry.startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=config.schema_registry_cafile or None)
    except OSError as error:
        raise StreamSettingError(
            f"stream.schema_registry_cafile={config.schema_registry_cafile} cannot be used: {error}"
        ) from error


def _is_of_certificate(error: Exception) -> bool:
    """Whether the registry's certificate is not trusted, which no waiting changes."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, ssl.SSLCertVerificationError)
