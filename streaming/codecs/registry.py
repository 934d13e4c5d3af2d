"""Schemas by id from a schema registry over HTTP (Confluent's interface, which others implement too)."""

import base64
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from streaming.config import StreamConfig, StreamSettingError

_TIMEOUT_S = 10.0
_RETRY_S = 0.5
_UNKNOWN_FOR_S = 60.0
_NOT_FOUND = 404


class RegistryUnavailable(RuntimeError):
    """The schema registry does not answer or refuses; names its address and the setting."""


class UnknownSchema(ValueError):
    """The registry has no schema of this id."""


@dataclass
class Registered:
    """A schema.

    Attributes:
        kind: AVRO, PROTOBUF or JSON.
        text: as registered; of Protobuf, a serialized FileDescriptorProto in base64.
    """

    kind: str
    text: str


@dataclass
class SchemaRegistry:
    """A client that asks for each schema once.

    Args:
        config: `schema_registry` is its address; user, password, and authorities of certificates are optional.
    """

    config: StreamConfig
    _known: dict[int, Registered] = field(default_factory=dict)
    _unknown: dict[int, float] = field(default_factory=dict)

    def schema(self, number: int) -> Registered:
        """The schema of an id; waits up to `stream.broker_patience_s` for a registry that does not answer.

        Raises:
            UnknownSchema: there is none; asked again only after a minute.
            RegistryUnavailable: it did not answer for so long, or refused.
        """
        if number in self._known:
            return self._known[number]
        if time.monotonic() < self._unknown.get(number, 0.0):
            raise UnknownSchema(f"schema {number} is not in the registry {self._where}")
        found = self._asked(f"schemas/ids/{number}")
        if found is None:
            self._unknown[number] = time.monotonic() + _UNKNOWN_FOR_S
            raise UnknownSchema(f"schema {number} is not in the registry {self._where}")
        kind, text = str(found.get("schemaType") or "AVRO"), str(found["schema"])
        if found.get("references"):
            text = self._with_references(number, kind, text)
        if kind == "PROTOBUF":
            text = str((self._asked(f"schemas/ids/{number}?format=serialized") or {})["schema"])
        self._known[number] = Registered(kind, text)
        return self._known[number]

    def _with_references(self, number: int, kind: str, text: str) -> str:
        if kind == "JSON":
            return text  # messages are not validated against it
        raise UnknownSchema(f"schema {number} refers to other schemas, which are not supported for {kind}")

    def _asked(self, path: str) -> dict[str, Any] | None:
        until = time.monotonic() + self.config.broker_patience_s
        request = self._request(path)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=self._tls()) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                if error.code == _NOT_FOUND:
                    return None
                if error.code < 500 or time.monotonic() > until:
                    raise self._unavailable(error) from error
            except (OSError, ValueError) as error:
                if time.monotonic() > until:
                    raise self._unavailable(error) from error
            time.sleep(_RETRY_S)

    def _request(self, path: str) -> urllib.request.Request:
        config = self.config
        request = urllib.request.Request(f"{config.schema_registry.rstrip('/')}/{path}")
        if config.schema_registry_user:
            name = config.schema_registry_password_env
            if name and name not in os.environ:
                raise StreamSettingError(
                    f"stream.schema_registry_password_env names the environment variable {name!r}, which is not set"
                )
            pair = f"{config.schema_registry_user}:{os.environ.get(name, '')}"
            request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
        return request

    def _tls(self) -> ssl.SSLContext | None:
        if not self.config.schema_registry.startswith("https:"):
            return None
        return ssl.create_default_context(cafile=self.config.schema_registry_cafile or None)

    @property
    def _where(self) -> str:
        """The address without user and password."""
        parts = urlsplit(self.config.schema_registry)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"

    def _unavailable(self, error: Exception) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"the schema registry {self._where} cannot be used: {error} (settings: stream.schema_registry, "
            "stream.schema_registry_user, stream.schema_registry_cafile)"
        )
