"""A real schema registry (Apicurio, which has Confluent's HTTP interface too) on loopback, for tests.

Its archive comes from the Maven registry and is kept in the cache beside Kafka's jars.
"""

import hashlib
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from jgo.maven import MavenContext

from streaming.local_broker.jars import cache_root, exclusive
from streaming.local_broker.process import kafka_command

_GROUP, _ARTIFACT, _VERSION = "io.apicurio", "apicurio-registry-app", "3.0.9"
_SHA256 = "2b28181501a20cbf6efcd77f9b7153908fc01f3d3a7c32024c0bd9e1b04c8a43"
_FETCH_TIMEOUT_S = 60
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.2
_INTERFACE = "/apis/ccompat/v7"


class LocalRegistry:
    """One registry process, in memory, with basic authentication on both ports; a context manager.

    Attributes:
        http: address of its interface.
        https: the same over TLS.
    """

    def __init__(self, folder: Path, certificate: Path, key: Path, user: str, password: str) -> None:
        plain, secured = _free_ports(2)
        self.http = f"http://127.0.0.1:{plain}{_INTERFACE}"
        self.https = f"https://127.0.0.1:{secured}{_INTERFACE}"
        self._login = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
        self._log = folder / "registry.log"
        self._folder = folder
        self._properties = {
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": plain,
            "quarkus.http.ssl-port": secured,
            "quarkus.http.ssl.certificate.files": certificate,
            "quarkus.http.ssl.certificate.key-files": key,
            "quarkus.http.auth.basic": "true",
            "quarkus.http.auth.permission.all.paths": "/*",
            "quarkus.http.auth.permission.all.policy": "authenticated",
            "quarkus.security.users.embedded.enabled": "true",
            "quarkus.security.users.embedded.plain-text": "true",
            f"quarkus.security.users.embedded.users.{user}": password,
        }

    def __enter__(self) -> Self:
        home = _unpacked()
        (runner,) = home.glob("*-runner.jar")
        settings = [f"-D{name}={value}" for name, value in self._properties.items()]
        # The class path is not used with -jar.
        command = kafka_command([runner], 384, [*settings, "-jar", str(runner)])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def register(
        self, subject: str, schema: Any, kind: str = "AVRO", references: Sequence[tuple[str, str, int]] = ()
    ) -> int:
        """Register a version of a subject.

        Args:
            subject: its name.
            schema: a text, or an object that is sent as JSON text.
            kind: AVRO, PROTOBUF or JSON.
            references: names, subjects, and versions.
        Returns:
            The schema's id.
        """
        named = [dict(zip(("name", "subject", "version"), one, strict=True)) for one in references]
        text = schema if isinstance(schema, str) else json.dumps(schema)
        body = {"schema": text, "schemaType": kind, "references": named}
        return int(self._ask(f"/subjects/{subject}/versions", json.dumps(body).encode())["id"])

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Authorization": self._login, "Content-Type": "application/json"}
        request = urllib.request.Request(self.http + path, body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _wait(self) -> None:
        until = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                self._ask("/subjects")
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    said = self._log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"the schema registry did not start: {error}\n{said}") from error
                time.sleep(_POLL_S)


def _unpacked() -> Path:
    """The registry's folder in the cache, fetched on the first call (109 MB); it is whole or absent."""
    folder = cache_root() / f"{_ARTIFACT}-{_VERSION}"
    with exclusive(folder.with_name(folder.name + ".lock")):
        if not folder.exists():
            staging = folder.with_name(folder.name + ".partial")
            shutil.rmtree(staging, ignore_errors=True)
            context = MavenContext(repo_cache=staging / "repository", timeout=_FETCH_TIMEOUT_S)
            archive = (
                context.project(_GROUP, _ARTIFACT).at_version(_VERSION).artifact("all", "tar.gz").resolve()
            )
            with archive.open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == _SHA256
            with tarfile.open(archive) as files:
                files.extractall(staging / "unpacked", filter="data")
            (staging / "unpacked").rename(folder)
            shutil.rmtree(staging)
    return folder


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
