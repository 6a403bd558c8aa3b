"""The settings that determine the weights of a run: their comparison and their digest."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from aida_lightning.compare.classes import source_digests
from aida_lightning.compare.methods import OptimizerChoice, UsageError

# The short keys of settings that may differ when a run resumes, for example on another machine.
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

    Parameter groups are one value, in JSON: their patterns have dots, and their order matters.

    Example:
        >>> flat({"trainer": {"max_epochs": 1}, "seeds": [0]})
        {'trainer.max_epochs': 1, 'seeds': [0]}
        >>> flat({"options": {"groups": {"*.bias": {"weight_decay": 0.0}}}})
        {'options.groups': '{"*.bias": {"weight_decay": 0.0}}'}
    """
    if key.endswith(".groups") and isinstance(content, Mapping):
        return {key: json.dumps(content, default=str)}
    if isinstance(content, Mapping) and content:
        items = {f"{key}.{name}" if key else str(name): v for name, v in content.items()}
        return {k: v for name, item in items.items() for k, v in flat(item, name).items()}
    return {key: content}


def short_key(key: str) -> str:
    """Return a dotted key without `init_args`, which keys may omit."""
    return key.replace(".init_args.", ".")


def run_settings(
    config: Mapping[str, Any], optimizer: OptimizerChoice, seed: int
) -> dict[str, Any]:
    """Return the settings in an experiment's resolved file that determine a run's weights."""
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
    """Return the settings in an experiment's resolved file that all of its runs share."""
    keys = ("model", "data", "trainer", "callbacks", "optimizer_options")
    return {key: config.get(key) for key in keys}


def settings_digest(config: Mapping[str, Any]) -> str:
    """Return a digest, of eight hexadecimal digits, of the settings that all runs share."""
    settings = _decisive(common_settings(config))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def refuse_differences(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something with other settings.

    Raises:
        UsageError: a setting that is not incidental differs; the message names it.
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
            "Choose another folder"
        )
    if edited := edited_sources(there, here):
        raise UsageError(
            f"output: {what} whose classes were edited since then, which is kept: "
            f"{', '.join(edited)}. Choose another folder, or pass --rerun to train it again"
        )


def edited_sources(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the modules whose source has changed; none if the sources were not noted."""
    old, new = there.get("sources") or {}, here.get("sources") or {}
    return [name for name in {**old, **new} if old and old.get(name) != new.get(name)]


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in settings.items() if key != "sources"}
    return {key: v for key, v in flat(own).items() if short_key(key) not in INCIDENTAL}
