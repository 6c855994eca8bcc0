"""One turn of a side, in a process of its own; the standard library only.

Ours and PyTorch's run it in environments of their own. A side is asked by one
argument of JSON; its answer goes into the file that this names, since any
library may print.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

_WARM = 3
_BLOCKS = 3
_MOST = 200

_OF_MEMORY = ("resource_exhausted", "out of memory", "outofmemory")


def time_steps(
  step: Callable[[], Any], wait: Callable[[], Any], *, seconds: float
) -> dict[str, Any]:
  """Returns the seconds a step, one number for each of three blocks of steps.

  Args:
    step: starts a step; need not wait for it.
    wait: returns once all steps are done.
    seconds: about so long is a block.
  """
  began = time.perf_counter()
  step()
  wait()
  first = time.perf_counter() - began
  for _ in range(_WARM - 1):
    step()
  wait()
  began = time.perf_counter()
  step()
  wait()
  one = time.perf_counter() - began
  count = max(1, min(_MOST, round(seconds / one)))
  blocks = []
  for _ in range(_BLOCKS):
    began = time.perf_counter()
    for _ in range(count):
      step()
    wait()
    blocks.append((time.perf_counter() - began) / count)
  return {"seconds": blocks, "steps": count, "first_step_seconds": first}


def answer(work: Callable[..., dict[str, Any]]) -> None:
  """Calls `work` with what is asked, and writes what it returns or why not."""
  asked = json.loads(sys.argv[1])
  path = asked.pop("answer")
  try:
    result = work(**asked)
  except Exception as error:
    traceback.print_exc()
    result = {"failure": failure(error)}
  with open(path, "w", encoding="utf-8") as file:
    json.dump(result, file)


def failure(error: Exception) -> str:
  """Returns why a turn failed, in one line."""
  said = f"{type(error).__name__}: {error}"
  if isinstance(error, MemoryError) or any(
    words in said.lower() for words in _OF_MEMORY
  ):
    return "out of memory"
  return " ".join(said.split())[:200]
