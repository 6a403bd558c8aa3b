"""What the weights of a run depend on, compared and digested."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from aida_lightning.compare.classes import source_digests
from aida_lightning.compare.methods import OptimizerChoice, UsageError

# What may differ when a run goes on, for example on another machine; short keys.
INCIDENTAL = {
    "data.root",
    "data.download",
    "data.num_workers",
    "trainer.accelerator",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
}


def flat(content: Any, key: str = "") -> dict[str, Any]:
    """Return the values in nested mappings by their dotted keys.

    Example:
        >>> flat({"trainer": {"max_epochs": 1}, "seeds": [0]})
        {'trainer.max_epochs': 1, 'seeds': [0]}
    """
    if isinstance(content, Mapping) and content:
        items = {f"{key}.{name}" if key else str(name): v for name, v in content.items()}
        return {k: v for name, item in items.items() for k, v in flat(item, name).items()}
    return {key: content}


def short_key(key: str) -> str:
    """Return a dotted key without `init_args`, which it may leave out."""
    return key.replace(".init_args.", ".")


def run_settings(
    config: Mapping[str, Any], optimizer: OptimizerChoice, seed: int
) -> dict[str, Any]:
    """Return all that the weights of a run depend on, of an experiment's resolved file."""
    settings = {
        **{key: config[key] for key in ("model", "data", "trainer")},
        "callbacks": config.get("callbacks", []),
        "optimizer": {"name": optimizer.name, "options": optimizer.options},
        "sources": source_digests([common_settings(config), {"class_path": optimizer.name}]),
        "seed": seed,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def common_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all runs of an experiment have in common, of its resolved file."""
    keys = ("model", "data", "trainer", "callbacks", "optimizer_options")
    return {key: config.get(key) for key in keys}


def settings_digest(config: Mapping[str, Any]) -> str:
    """Return eight letters that follow from what all runs of an experiment have in common."""
    settings = _decisive(common_settings(config))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def refuse_differences(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something with other settings.

    Raises:
        UsageError: a setting differs that is not incidental; the message names it.
    """
    old, new = _decisive(there), _decisive(here)
    differences = [
        f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise UsageError(
            f"output: {what} with other settings, which is kept: {'; '.join(differences)}. "
            "Give another folder"
        )
    if edited := edited_sources(there, here):
        raise UsageError(
            f"output: {what} of classes that were edited since, which is kept: "
            f"{', '.join(edited)}. Give another folder, or --rerun to train it again"
        )


def edited_sources(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the modules whose source is another one now; none where it was not noted."""
    old, new = there.get("sources") or {}, here.get("sources") or {}
    return [name for name in {**old, **new} if old and old.get(name) != new.get(name)]


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in settings.items() if key != "sources"}
    return {key: v for key, v in flat(own).items() if short_key(key) not in INCIDENTAL}
