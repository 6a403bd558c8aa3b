"""The choice of some of many layers, for what can show no more."""


def evenly(count: int, most: int) -> list[int]:
    """Choose at most so many places of a sequence, evenly spread, its first and last among them.

    Example:
        >>> evenly(9, 3), evenly(2, 3)
        ([0, 4, 8], [0, 1])
    """
    some = min(count, most)
    return [index * (count - 1) // max(some - 1, 1) for index in range(some)]
