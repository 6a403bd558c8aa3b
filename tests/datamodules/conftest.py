"""A server of one file that fails as it is told to."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aida_lightning.datamodules import _download


class Server(ThreadingHTTPServer):
    """Give the answers that it is told to, in turn, then the last one again and again."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = 0
        self.closing = threading.Event()
        self.serve(b"")

    def serve(self, content: bytes) -> None:
        """Take a content; an answer of less is a connection that was cut."""
        self.content = content
        self.answers = [(200, content)]

    def handle_error(self, request, client_address):
        """Say nothing of clients that went away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.txt"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status, content = self.server.answers[
            min(self.server.requests, len(self.server.answers) - 1)
        ]
        self.server.requests += 1
        if status == "stall":
            self.server.closing.wait()
            return
        self.send_response(status)
        whole = self.server.content if status == 200 else content
        self.send_header("Content-Length", len(whole))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(_download, "_pause", pauses.append)
    return pauses
