"""Checkpoints that survive a kill, a full disk or a flipped bit, so that no run is lost."""

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

# Backups have a separate folder beside the checkpoints, because Lightning considers any file whose
# name contains "last" for ckpt_path="last".
_BACKUP = ".backup"


class DurableCheckpointIO(TorchCheckpointIO):
    """Save checkpoints so that an intact one exists at every moment, and load no damaged one.

    Lightning writes a checkpoint to the temporary folder and moves the file over the old one. If
    that folder is on another file system, the move is a copy, and a kill or a full disk during the
    copy leaves neither the old checkpoint nor the new one. This plugin writes the file beside its
    target, flushes it to the disk, and renames it. It keeps the replaced checkpoint in a folder
    ``.backup`` beside it. When it loads a checkpoint, it verifies the checksums of its parts; if
    the checkpoint is damaged or missing, it loads the previous one, with a warning.

    The backup doubles the disk space of checkpoints that are repeatedly saved under the same name.
    Files on remote file systems are left to Lightning.

    Raises:
        OSError: the checkpoint cannot be written; the previous one is unchanged.
        RuntimeError: the checkpoint to load is damaged, and there is no intact previous one.
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
        except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError.
            kept = next((file for file in (target, backup) if file.exists()), None)
            raise OSError(
                f"The checkpoint {target} cannot be written: {error}; "
                + (f"{kept} is the previous one" if kept else "there is no previous one")
                + ". Free disk space or choose another folder, and resume from the last checkpoint"
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
        target = _local(path)  # The link must be resolved before the file is removed.
        super().remove_checkpoint(path)
        if target is not None:
            folder = target.parent / _BACKUP
            for file in (folder / target.name, folder / f"{target.name}.part"):
                file.unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def find_whole(path: str | Path) -> str | Path:
    """Return the checkpoint to load for a path: itself or, if it is damaged, the previous one.

    Raises:
        RuntimeError: the checkpoint is damaged, and there is no intact previous one.
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
            f"The checkpoint {target} {fault}, and there is no intact previous one. Put a good "
            f"copy in its place, or move it and {backup.parent} away"
        )
    rank_zero_warn(f"The checkpoint {target} {fault}; the previous one is loaded: {backup}")
    return backup


def _local(path: str | Path) -> Path | None:
    """Return the path of a file on this machine, without links; None on a remote file system."""
    filesystem, stripped = url_to_fs(str(path))
    return Path(stripped).resolve() if isinstance(filesystem, LocalFileSystem) else None


def _is_whole(file: Path) -> bool:
    """Check the checksums that torch keeps of a checkpoint's parts.

    If torch is configured to keep none, only a truncated file is detected.
    """
    try:
        torch.PyTorchFileReader(str(file))  # It checks more of the headers.
        with zipfile.ZipFile(file) as archive:
            return not torch.serialization.get_crc32_options() or archive.testzip() is None
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile):
        return False


def _hold(target: Path, backup: Path) -> None:
    """Give a checkpoint a second name, so that it remains when another takes over its name."""
    link = backup.with_name(f"{backup.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(target, link)
    except OSError:  # Without links, the backup is the only checkpoint until the rename.
        target.replace(backup)
    else:
        link.replace(backup)


def _sync_folder(folder: Path) -> None:
    """Flush the renames to the disk, if the platform can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
