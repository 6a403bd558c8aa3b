"""A checkpoint is there, whole, whatever happens while the next one is saved."""

import os
import pickle
import random
import shutil
import warnings
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from toy import Net

from aida_lightning import DurableCheckpointIO
from aida_lightning.checkpoint_io import find_whole

OPERATIONS = [(os, "fsync"), (os, "link"), (os, "replace"), (os, "rename"), (Path, "open")]
OPERATIONS += [(Path, "replace"), (Path, "unlink"), (torch, "save")]


def save(path, value, size=1000):
    DurableCheckpointIO().save_checkpoint({"value": value, "weights": torch.ones(size)}, path)


def value_of(path):
    return DurableCheckpointIO().load_checkpoint(path, weights_only=True)["value"]


def save_and_die(path, value, moment, after):
    """Save, and end as kill -9 ends a process before or after the moment-th file operation."""
    count = 0

    def deadly(operation):
        def operate(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == moment and not after:
                os._exit(9)
            result = operation(*arguments, **keywords)
            if count == moment:
                os._exit(9)
            return result

        return operate

    for owner, name in OPERATIONS:
        setattr(owner, name, deadly(getattr(owner, name)))
    save(path, value)
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:the checkpoint .* is missing; the previous one")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(
    tmp_path, monkeypatch, after, links
):
    if not links:

        def refuse(*arguments):
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "last.ckpt"
    save(path, 0)
    save(path, 1)
    newest, codes = 1, []
    for moment in range(1, 100):
        process = get_context("fork").Process(
            target=save_and_die, args=(path, newest + 1, moment, after)
        )
        process.start()
        process.join()
        codes.append(process.exitcode)
        found = value_of(path)
        assert found in (newest, newest + 1), (moment, found)
        newest = found
        if process.exitcode == 0:
            break
    assert codes[-1] == 0
    assert codes.count(9) >= 4  # the operations were met
    assert newest == value_of(path)


def test_the_new_checkpoint_never_passes_through_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", lambda *_, **__: pytest.fail("a temporary file"))
    save(tmp_path / "last.ckpt", 1)
    assert value_of(tmp_path / "last.ckpt") == 1


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    part = tmp_path / ".backup" / "last.ckpt.part"
    part.symlink_to(full)
    with pytest.raises(OSError, match=r"last.ckpt cannot be written: .*; .* is the previous one"):
        save(path, 2)
    assert value_of(path) == 1
    assert not part.is_symlink()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    save(path, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flipped": content, "cut": content[:-100]}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with pytest.warns(UserWarning, match="the previous one is loaded"):
        assert value_of(path) == 1


def test_without_a_whole_one_before_it_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match="is damaged, and there is no intact previous one"):
        value_of(path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt"):
        value_of(tmp_path / "nothing.ckpt")


def test_checkpoints_that_others_wrote_are_loaded_as_they_are(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"value": 3}, path)
    assert value_of(path) == 3
    assert find_whole(path) == path


@pytest.mark.parametrize("way", ["saved", "copied", "linked"])
def test_a_whole_checkpoint_that_others_put_in_its_place_is_loaded(tmp_path, way):
    path, other = tmp_path / "last.ckpt", tmp_path / "epoch=3.ckpt"
    save(path, 1)
    save(path, 2)
    torch.save({"value": 3}, path if way == "saved" else other)
    if way == "copied":
        shutil.copy(other, path)
    elif way == "linked":
        path.unlink()
        path.symlink_to(other.name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value_of(path) == 3
    save(path, 4)
    assert value_of(path) == 4
    path.resolve().write_bytes(b"")
    with pytest.warns(UserWarning, match="the previous one is loaded"):
        assert value_of(path) == 3


def test_a_flipped_byte_anywhere_changes_no_value_unseen(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    save(path, 2, size=50)
    whole = path.read_bytes()
    draw, seen = random.Random(0), 0
    for _ in range(300):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = DurableCheckpointIO().load_checkpoint(path, weights_only=True)
        seen += bool(caught)
        assert loaded["value"] == (1 if caught else 2)
        assert torch.equal(loaded["weights"], torch.ones(1000 if caught else 50))
    assert seen > 50


def test_a_removed_checkpoint_leaves_nothing(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    save(path, 2)
    DurableCheckpointIO().remove_checkpoint(path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`")
def test_a_trainer_takes_it_and_last_is_still_found(tmp_path):
    def trainer(epochs):
        return Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            plugins=[DurableCheckpointIO()],
            callbacks=[ModelCheckpoint(tmp_path, save_last=True, save_top_k=1)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    first = trainer(2)
    first.fit(Net())
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"")
    second = trainer(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        second.fit(Net(), ckpt_path="last")
    assert second.current_epoch == 3


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        DurableCheckpointIO().save_checkpoint({"value": lambda: None}, path)
    assert value_of(path) == 1
    assert not [*tmp_path.rglob("*.part")]


def test_a_rename_that_fails_without_links_names_where_the_one_before_is(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    replace = Path.replace

    def fail(source, target):
        if source.suffix == ".part":
            raise OSError("no rename")
        return replace(source, target)

    def refuse(*arguments):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"no rename; .*\.backup.last\.ckpt is the previous one"):
        save(path, 2)
    with pytest.warns(UserWarning, match="is missing; the previous one is loaded"):
        assert value_of(path) == 1
