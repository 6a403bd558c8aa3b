import hashlib
import socket

import pytest

from aida_lightning.datamodules import _download
from aida_lightning.datamodules._download import download

CONTENT = b"the right content\n" * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(server):
    server.serve(CONTENT)
    return server


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


def test_a_wrong_file_that_cannot_be_replaced_is_told_of(server, tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"put there by hand")
    server.answers = [(404, b"none")]
    digest = hashlib.sha256(b"put there by hand").hexdigest()
    with pytest.raises(RuntimeError, match=f"is there has the SHA-256 {digest}, not {SHA256}"):
        download(server.url, path, SHA256)


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


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "taken").touch()
    folder = tmp_path / "taken" / "folder"
    with pytest.raises(RuntimeError, match=rf"download file\.txt to {folder}: .*Not a directory"):
        download(server.url, folder / "file.txt", SHA256)
    assert server.requests == 0
