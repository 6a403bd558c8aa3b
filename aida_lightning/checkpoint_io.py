"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into the loss of a run."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning_utilities.core.rank_zero import rank_zero_warn
from typing_extensions import override

from aida_lightning._lightning import TorchCheckpointIO

# Beside the checkpoints, in a folder of its own: Lightning takes any file whose name has "last" in
# it for a checkpoint that ckpt_path="last" may mean.
_BACKUP = ".backup"


class DurableCheckpointIO(TorchCheckpointIO):
    """Save checkpoints so that there is a whole one at every moment, and load no damaged one.

    Lightning's own way writes to the temporary folder and moves the file over the old one. Where
    that folder is on another file system, the move is a copy, and a kill or a full disk in its
    course leaves neither the old checkpoint nor the new one. Here, the file is written beside its
    target, flushed to the disk, and renamed; the checkpoint that it replaces is kept in a folder
    ``.backup`` beside it. When a checkpoint is loaded, the checksums of its parts are checked; a
    damaged or missing one gives way to the one before it, with a warning.

    The checkpoint that is kept doubles the disk space of checkpoints that are saved under one name
    again and again. Files on remote file systems are left to Lightning.

    Raises:
        OSError: the checkpoint cannot be written; the one before it is as it was.
        RuntimeError: the checkpoint to load is damaged, and there is no whole one before it.
        FileNotFoundError: there is no checkpoint to load.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from aida_lightning import DurableCheckpointIO
        >>> trainer = Trainer(plugins=[DurableCheckpointIO()], accelerator="cpu", logger=False)
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        if storage_options is not None or (target := _local(path)) is None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        backup = target.parent / _BACKUP / target.name
        part = backup.with_name(f"{target.name}.part")
        try:
            backup.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                _hold(target, backup)
            part.replace(target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:  # torch's writer raises the second
            kept = next((file for file in (target, backup) if file.exists()), None)
            raise OSError(
                f"the checkpoint {target} cannot be written: {error}; "
                + (f"{kept} is the one before" if kept else "there is none before it")
                + ". Make room or give another folder, and go on from the last checkpoint"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return super().load_checkpoint(
            find_whole(path), map_location=map_location, weights_only=weights_only
        )

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        target = _local(path)  # before it is gone
        super().remove_checkpoint(path)
        if target is not None:
            folder = target.parent / _BACKUP
            for file in (folder / target.name, folder / f"{target.name}.part"):
                file.unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def find_whole(path: str | Path) -> str | Path:
    """Return the checkpoint to load for a path: it, or the one before it if it is damaged.

    Raises:
        RuntimeError: it is damaged, and there is no whole one before it.
    """
    target = _local(path)
    if target is None or _is_whole(target):
        return path
    backup = target.parent / _BACKUP / target.name
    if not target.exists() and not backup.exists():
        return path
    fault = "is damaged" if target.exists() else "is missing"
    if not _is_whole(backup):
        raise RuntimeError(
            f"the checkpoint {target} {fault}, and there is no whole one before it. Put a good "
            f"copy in its place, or move it and {backup.parent} away"
        )
    rank_zero_warn(f"the checkpoint {target} {fault}; the one before it is loaded: {backup}")
    return backup


def _local(path: str | Path) -> Path | None:
    """Return where a file is on this machine, past links; None on a remote file system."""
    filesystem, stripped = url_to_fs(str(path))
    return Path(stripped).resolve() if isinstance(filesystem, LocalFileSystem) else None


def _is_whole(file: Path) -> bool:
    """Check the checksums that torch keeps of a checkpoint's parts.

    Where torch was told to keep none, only what a cut leaves is noticed.
    """
    try:
        torch.PyTorchFileReader(str(file))  # which looks at more of the headers
        with zipfile.ZipFile(file) as archive:
            return not torch.serialization.get_crc32_options() or archive.testzip() is None
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile):
        return False


def _hold(target: Path, backup: Path) -> None:
    """Give a checkpoint a second name, so that it stays when its own is given to another."""
    link = backup.with_name(f"{backup.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(target, link)
    except OSError:  # a file system without links: until the rename, the backup is the checkpoint
        target.replace(backup)
    else:
        link.replace(backup)


def _sync_folder(folder: Path) -> None:
    """Flush the renames to the disk, where the platform can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
