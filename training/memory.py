"""How a process keeps the memory that it frees, for speed on a CPU."""

import ctypes
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets the C library keep freed memory for the next use instead of giving it back at once.

    XLA on a CPU allocates its temporaries anew at every call, and a large block comes from the kernel page by
    page: a training step of two layers met 320,000 page faults, a quarter of its processor time. Kept, the
    process stays as large as it has ever been. One arena, since others cannot hold large blocks. To be called
    first thing in a program, before threads have arenas of their own.

    Returns:
      whether it was done: on Linux with glibc only; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)
