"""The choice of some of many layers, for displays that cannot show more."""


def evenly(count: int, most: int) -> list[int]:
    """Choose at most ``most`` of ``count`` places, evenly spread, including the first and the last.

    Example:
        >>> evenly(9, 3), evenly(2, 3)
        ([0, 4, 8], [0, 1])
    """
    some = min(count, most)
    return [index * (count - 1) // max(some - 1, 1) for index in range(some)]
