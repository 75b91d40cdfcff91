"""The C heap of a serving process: large blocks come from the system alone, and what is free goes back to it.

glibc by default keeps freed blocks of up to 32 MiB, in one arena for every thread or two: a few large photos, decoded
at once, would stay resident for good.
"""

import ctypes
import gc

__all__ = ["collect_garbage", "keep_heap_small", "set_objects_aside", "trim_heap"]

# The names of malloc.h, and the settings: a block of this size or larger is a mapping of its own.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
# Messages of one image lie below it: mapped anew for each, their pages would cost a tenth of a light network's time.
MAPPED_BLOCK_BYTES = 2 << 20
ARENAS = 2


def keep_heap_small() -> None:
    """Set up the C heap of this process for good, before it has threads; does nothing where it is not glibc's."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, MAPPED_BLOCK_BYTES)
        library.mallopt(_M_ARENA_MAX, ARENAS)


def trim_heap() -> None:
    """Give free pages of the C heap back to the system; does nothing where it is not glibc's."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))


def set_objects_aside() -> None:
    """Let the garbage collector leave alone what is there by now: networks and plans, which stay, are most of it."""
    gc.collect()
    gc.freeze()


def collect_garbage() -> None:
    """Free circles of objects, among those that were set aside too."""
    aside = gc.get_freeze_count()
    gc.unfreeze()
    gc.collect()
    if aside:
        gc.freeze()
