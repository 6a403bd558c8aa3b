"""Names of metrics that the clients of Lightning's loggers keep, so that no two become one."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary
from zlib import crc32

from lightning_utilities.core.rank_zero import rank_zero_info

from aida_lightning._lightning import CometLogger, Logger, MLFlowLogger
from aida_lightning._private import prefix_of

# The number of changed names that a message shows, since they are as long as a module's.
MOST_SHOWN = 5


class _Limits(NamedTuple):
    """The limits of a client: a pattern of characters that it loses, and the longest name."""

    lost: str | None
    longest: int


_LIMITS: dict[Any, _Limits] = {
    # Lightning's logger drops other characters, and the client refuses names that are not normal
    # paths.
    MLFlowLogger: _Limits(
        r"[^a-zA-Z0-9_/. -]|(?<![^/])/|/\Z|(?<![^/])\.{1,2}(?![^/])|\A\.\.", longest=250
    ),
    CometLogger: _Limits(None, longest=100),  # The client truncates longer names.
}
_ESCAPE = r"_x[0-9A-F]+_"
_told: WeakKeyDictionary[Logger, set[str]] = WeakKeyDictionary()


def kept_names(logger: Logger, names: Iterable[str]) -> dict[str, str]:
    """Map names to names that a logger's client keeps apart, and report each change once.

    A name that the client keeps is unchanged. In any other name, each character that the client
    would lose is written by its code point, such as ``_x3A_``, and the middle of a name that is too
    long is replaced by a checksum.

    Args:
        logger: one of Lightning's loggers, or any other, for which all names are unchanged.
        names: names without the prefix that the logger adds.
    """
    limits = next((limits for cls, limits in _LIMITS.items() if isinstance(logger, cls)), None)
    if limits is None:
        return {name: name for name in names}
    room = limits.longest - (len(prefix) + 1 if (prefix := prefix_of(logger)) else 0)
    kept = {name: _shortened(_escaped(name, limits.lost), room) for name in names}
    _tell(logger, {name: new for name, new in kept.items() if name != new})
    return kept


def _escaped(name: str, lost: str | None) -> str:
    # Text that looks like an escape is escaped as well, so that no two names become equal.
    if lost is None or not re.search(f"{lost}|{_ESCAPE}", name):
        return name
    return re.sub(f"{lost}|_(?=x)", lambda found: "".join(f"_x{ord(c):X}_" for c in found[0]), name)


def _shortened(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    half = max(longest - 10, 2) // 2
    return f"{name[:half]}_{crc32(name.encode()):08x}_{name[-half:]}"


def _tell(logger: Logger, changed: dict[str, str]) -> None:
    told = _told.setdefault(logger, set())
    new = [f"{name!r} as {kept!r}" for name, kept in changed.items() if name not in told]
    told.update(changed)
    if new:
        more = f", and {len(new) - MOST_SHOWN} more" if len(new) > MOST_SHOWN else ""
        rank_zero_info(
            f"{type(logger).__name__} would not keep these names apart from others, so it gets "
            f"{', '.join(new[:MOST_SHOWN])}{more}."
        )
