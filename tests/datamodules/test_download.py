import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from aida_lightning.datamodules import _download
from aida_lightning.datamodules._download import download

CONTENT = b"the right content\n" * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Gives the answers that it is told to, in turn, then the last one again and again."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = [(200, CONTENT)]
        self.requests = 0

    def handle_error(self, request, client_address):
        """Says nothing of clients that went away."""

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
            time.sleep(1)
            return
        self.send_response(status)
        # A cut connection: less than was promised.
        self.send_header("Content-Length", len(CONTENT) if status == 200 else len(content))
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
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(_download, "_pause", pauses.append)
    return pauses


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_and_folders_are_made(server, tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.txt"]


def test_a_right_file_is_not_fetched_again(server, tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(CONTENT)
    download(server.url, path, SHA256)
    assert server.requests == 0


def test_a_wrong_file_is_replaced_by_the_right_one(server, tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param((200, CONTENT[:1000]), id="cut short"),
        pytest.param((200, b"x" * len(CONTENT)), id="other content"),
        pytest.param((503, b"later"), id="server error"),
    ],
)
def test_a_broken_download_is_tried_again_after_a_pause_that_doubles(
    server, tmp_path, pauses, broken
):
    server.answers = [broken, broken, (200, CONTENT)]
    download(server.url, tmp_path / "file.txt", SHA256)
    assert (tmp_path / "file.txt").read_bytes() == CONTENT
    assert server.requests == 3
    assert pauses == [1, 2]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param((200, CONTENT[:1000]), "invalid hash value", id="cut short"),
        pytest.param((200, b"x" * len(CONTENT)), "invalid hash value", id="other content"),
        pytest.param((503, b"later"), "503", id="server error"),
    ],
)
def test_a_broken_download_leaves_what_was_there_and_nothing_else(server, tmp_path, broken, said):
    path = tmp_path / "file.txt"
    path.write_bytes(b"precious")
    server.answers = [broken]
    with pytest.raises(RuntimeError, match=said) as caught:
        download(server.url, path, SHA256)
    assert server.url in str(caught.value)
    assert "file.txt" in str(caught.value)
    assert path.read_bytes() == b"precious"
    assert names(tmp_path) == ["file.txt"]
    assert server.requests == 3


def test_a_file_that_is_not_there_is_not_asked_for_again(server, tmp_path, pauses):
    server.answers = [(404, b"none")]
    with pytest.raises(RuntimeError, match="404"):
        download(server.url, tmp_path / "file.txt", SHA256)
    assert server.requests == 1
    assert pauses == []


def test_the_next_address_is_tried_when_one_fails(server, tmp_path):
    server.answers = [(404, b"none"), (200, CONTENT)]
    download([server.url, server.url], tmp_path / "file.txt", SHA256)
    assert (tmp_path / "file.txt").read_bytes() == CONTENT


def test_the_error_tells_of_every_address(server, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
    server.answers = [(404, b"none")]
    with pytest.raises(RuntimeError, match=rf"{dead}: .*refused.*; {server.url}: .*404"):
        download([dead, server.url], tmp_path / "file.txt", SHA256)


def test_a_server_that_says_nothing_is_given_up_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(_download, "_TIMEOUT_S", 0.1)
    server.answers = [("stall", b"")]
    with pytest.raises(RuntimeError, match="timed out"):
        download(server.url, tmp_path / "file.txt", SHA256)
    assert socket.getdefaulttimeout() is None
