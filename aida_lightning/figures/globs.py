"""Short lists of globs that stand for long lists of layers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import translate
from glob import escape
from itertools import permutations
from typing import TypeVar

T = TypeVar("T")


def globs_of(choices: Mapping[str, T], default: T) -> dict[str, T]:
    """Return globs of layer names with their choices, the first that matches a name deciding.

    They decide exactly as the given choices do, for all of the given names: none of them matches a
    name whose choice is the default. A layer that shares its choice with no other keeps its name.

    Args:
        choices: a choice for each name.
        default: choice for which no glob is needed.

    Example:
        >>> globs_of({"0.weight": 1, "0.bias": 2, "1.weight": 1, "1.bias": 2}, default=0)
        {'*.weight': 1, '*.bias': 2}
        >>> globs_of({"0.weight": 1, "0.bias": 2, "1.weight": 1, "1.bias": 2}, default=2)
        {'*.weight': 1}
    """
    others = [choice for choice in dict.fromkeys(choices.values()) if choice != default]
    return min((_in_order(choices, order) for order in permutations(others)), key=len)


def _in_order(choices: Mapping[str, T], order: Sequence[T]) -> dict[str, T]:
    found: dict[str, T] = {}
    left = dict(choices)
    for choice in order:
        wanted = {name for name in left if left[name] == choice}
        remaining = [name for name in left if name in wanted]
        while remaining:
            matches = {
                glob: {*filter(re.compile(translate(glob)).match, left)}
                for glob in _candidates(remaining[0])
            }
            # Others that it matches are decided by an earlier glob. Of those that decide as many,
            # the more specific one counts.
            exact = [glob for glob in matches if matches[glob] <= wanted]
            best = max(exact, key=lambda g: (len(matches[g].intersection(remaining)), len(g)))
            found[best] = choice
            remaining = [name for name in remaining if name not in matches[best]]
        left = {name: other for name, other in left.items() if other != choice}
    return found


def _candidates(name: str) -> Iterator[str]:
    parts = [escape(part) for part in name.split(".")]
    yield ".".join(parts)
    yield ".".join("*" if part.isdigit() else part for part in parts)
    yield re.sub(r"\d+", "*", ".".join(parts))
    for place in range(1, len(parts)):
        yield ".".join([*parts[:place], "*"])
        yield ".".join(["*", *parts[place:]])
        yield f"*.{parts[place - 1]}.*"
    yield f"*{parts[-1].rpartition('_')[2]}"
    yield "*"
