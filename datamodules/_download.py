"""Downloads of single files, verified and retried."""

import hashlib
import socket
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from time import sleep as _pause
from urllib.error import HTTPError

from torch.hub import download_url_to_file

_TIMEOUT_S = 30.0
_ATTEMPTS = 3
_FIRST_PAUSE_S = 1.0
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}


def download(url: str | Sequence[str], path: str | Path, sha256: str) -> None:
    """Download a file whose content is known, unless it is already there.

    If a file at ``path`` has the right checksum, the network is not used. Otherwise, each address
    is tried up to three times, with a pause that doubles, before the next address. The content is
    written beside ``path`` under another name and moved there only if its checksum is right, so no
    failure leaves a broken file or removes an existing one.

    Args:
        url: address, or several addresses of the same content, the preferred one first.
        path: path of the file; its folder is created if necessary.
        sha256: SHA-256 of the content, 64 lower-case hexadecimal digits.

    Raises:
        RuntimeError: no address gave the content, in which case the message reports each answer and
            a file at ``path`` that is not the right one, or the folder cannot be created.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     source = Path(folder, "there.txt")
        ...     _ = source.write_text("abc")
        ...     digest = hashlib.sha256(b"abc").hexdigest()
        ...     download(source.as_uri(), Path(folder, "here.txt"), digest)
        ...     Path(folder, "here.txt").read_text()
        'abc'
    """
    path = Path(path)
    failures = []
    try:
        if path.is_file():
            if (found := sha256_of(path)) == sha256:
                return
            failures.append(f"the file that is there has the SHA-256 {found}, not {sha256}")
        path.parent.mkdir(parents=True, exist_ok=True)
        for address in [url] if isinstance(url, str) else url:
            failure = _try_repeatedly(address, path, sha256)
            if failure is None:
                return
            failures.append(f"{address}: {failure}")
    except OSError as error:
        failures.append(str(error))
    raise RuntimeError(f"could not download {path.name} to {path.parent}: " + "; ".join(failures))


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _try_repeatedly(url: str, path: Path, sha256: str) -> str | None:
    """Return None after a success, or the last attempt's failure."""
    seconds = _FIRST_PAUSE_S
    # torch's downloader checks the content before it moves the file, but it has no timeout.
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
                return None
            except HTTPError as error:
                error.close()  # it holds the connection
                failure = str(error)
                if error.code not in _WORTH_ANOTHER_TRY:
                    break
            except (OSError, HTTPException, RuntimeError) as error:
                failure = str(error) or type(error).__name__
            if attempt < _ATTEMPTS:
                _pause(seconds)
                seconds *= 2
    finally:
        socket.setdefaulttimeout(default_timeout)
    return failure
