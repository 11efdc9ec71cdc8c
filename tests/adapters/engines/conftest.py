"""What tests of engines share: a tiny model with its versions, and a server of answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lockstep import models
from lockstep.adapters.engines.publisher import Publisher
from lockstep.models import Model
from lockstep.models.tiny import build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    directory.mkdir()
    build_tiny(directory)
    return models.load(str(directory))


@pytest.fixture
def publisher(tiny: Model, tmp_path) -> Publisher:
    return Publisher(tiny, tmp_path)


Answer = Callable[[str, Any], Any]
"""What a path and a body are answered with: JSON, bytes as they are, an int for a status, None for silence."""


@pytest.fixture
def serving() -> Iterator[Callable[[Answer], str]]:
    """Starts a server that answers with a function; returns its address."""
    servers = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                said = answer(self.path.removeprefix("/v1"), body)
                if said is None:
                    time.sleep(2)
                    return
                self.send_response(said if isinstance(said, int) else 200)
                self.end_headers()
                with suppress(BrokenPipeError):
                    self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
