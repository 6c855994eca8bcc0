"""How the C library hands out memory to the compiled program on the CPU."""

import ctypes
import importlib.util
import sys

import jax

# From glibc's malloc.h and Linux' mman.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 << 20
# Address space, not memory: pages are taken when first written to.
_REGION = 1 << 30


def only_cpu() -> bool:
  """Whether JAX can find no other device than the CPU, without looking.

  It was told so (`JAX_PLATFORMS=cpu`), or it has no plugin for another one
  (docs.jax.dev, "Installation": GPUs come as `jax_plugins`, TPUs as `libtpu`).
  """
  if jax.config.jax_platforms:
    return jax.config.jax_platforms == "cpu"
  return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def keep_freed_memory() -> bool:
  """Lets this process keep the memory that it frees, in huge pages.

  XLA's CPU client takes the memory of all of a step's intermediate values anew
  at each call. Above 32 MB glibc maps it from the kernel and gives it back
  each time, and the page faults cost a quarter of a step (LOG.md, "Training
  step"). Afterwards the process stays as large as it ever was.

  Call it before JAX looks for devices: threads that exist already keep heaps
  of their own, which this doesn't reach. Elsewhere than on Linux with glibc
  nothing happens.

  Returns:
    Whether the C library took the settings.
  """
  if not sys.platform.startswith("linux"):
    return False
  library = ctypes.CDLL(None)
  try:
    set_option, advise = library.mallopt, library.madvise
    library.gnu_get_libc_version  # noqa: B018 (raises where it isn't glibc)
  except AttributeError:
    return False
  for option, value in (
    (_M_ARENA_MAX, 1),  # One heap for all threads.
    (_M_MMAP_MAX, 0),  # Large blocks from the heap too.
    (_M_TRIM_THRESHOLD, 2**31 - 1),  # The heap never shrinks.
  ):
    if not set_option(option, value):
      return False
  library.malloc.restype = ctypes.c_void_p
  library.malloc.argtypes = [ctypes.c_size_t]
  library.free.argtypes = [ctypes.c_void_p]
  advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
  start = library.malloc(_REGION)
  if start is None:  # The system grants no more than it has: small pages.
    return True
  aligned = -(-start // _HUGE_PAGE) * _HUGE_PAGE
  whole = (start + _REGION - aligned) // _HUGE_PAGE * _HUGE_PAGE
  advise(aligned, whole, _MADV_HUGEPAGE)
  library.free(start)
  return True
