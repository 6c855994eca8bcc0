"""A program that becomes a cell's process, once it is settled.

  python settle.py PARENT CORES PROGRAM ARGUMENTS...

It takes its cores, asks for SIGTERM when PARENT, the dispatcher, is killed
(so the cells of a killed dispatcher save, and wait for the next one), and turns
into PROGRAM. A program of its own and not between fork and exec: a process in
which JAX runs must not fork. Standard library alone: it starts at once.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
  """Does as the module says; CORES are numbers with commas, or nothing."""
  parent, cores, *command = sys.argv[1:]
  if sys.platform == "linux":  # Others have neither.
    if cores:
      os.sched_setaffinity(0, map(int, cores.split(",")))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # It was killed before that.
      os.kill(os.getpid(), signal.SIGTERM)
  try:
    os.execvp(command[0], command)
  except OSError as error:
    print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
