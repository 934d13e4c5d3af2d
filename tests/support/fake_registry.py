"""A schema registry on loopback with Confluent's HTTP interface for reading, as far as Freshet uses it."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeRegistry:
    """Serves schemas by id; a context manager.

    Attributes:
        schemas: by id: `schema`, `schemaType`, `references`.
        subjects: the same by subject and version, for references.
        asked: paths of all requests.
        failures: so many of the next requests are answered with 503.
    """

    def __init__(self, schemas: dict[int, dict[str, Any]], user: str = "", password: str = "") -> None:
        self.schemas, self.asked, self.failures = schemas, [], 0
        self.subjects: dict[tuple[str, int], dict[str, Any]] = {}
        wanted = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user else None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if outer.failures:
                    outer.failures -= 1
                    return self._answer(503, {})
                if wanted is not None and self.headers.get("Authorization") != wanted:
                    return self._answer(401, {"error_code": 40101})
                kind, name, *_, version = self.path.strip("/").split("/")
                found = (
                    outer.subjects.get((name, int(version)))
                    if kind == "subjects"
                    else outer.schemas.get(int(version))
                )
                return self._answer(200 if found else 404, found or {"error_code": 40403})

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeRegistry":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
