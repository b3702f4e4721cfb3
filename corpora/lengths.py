"""A few fixed lengths that batches are padded to: each is compiled once, and little of a batch is padding."""

from bisect import bisect_left

_STEP = 16  # what accelerators tile by; a shorter row costs no less
_GROWTH = 1.25


def ladder(max_length: int) -> tuple[int, ...]:
    """The compiled lengths up to `max_length`, ascending: multiples of 16, each at most 1.25 times the one
    before (or 16 more), and `max_length` itself last.

    Raises:
      ValueError: `max_length` is below 1.

    >>> ladder(256)
    (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 240, 256)
    """
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; it must be at least 1")
    lengths = []
    length = _STEP
    while length < max_length:
        lengths.append(length)
        length = max(length + _STEP, int(length * _GROWTH) // _STEP * _STEP)
    return (*lengths, max_length)


def bucket(length: int, ladder: tuple[int, ...]) -> int:
    """The shortest length of a `ladder` that holds rows of `length` tokens.

    Raises:
      ValueError: `length` is above the longest.

    >>> bucket(130, ladder(256)), bucket(0, ladder(256))
    (160, 16)
    """
    if length > ladder[-1]:
        raise ValueError(f"length is {length}; allowed: at most {ladder[-1]}, the longest of the ladder")
    return ladder[bisect_left(ladder, length)]
