"""The house: which room imports which, and TensorFlow at the door only."""

import ast
import pathlib
import subprocess
import sys

import pytest

_PACKAGE = pathlib.Path(__file__).parent.parent / "poison_jax"

# Each room may import itself and what stands below it in this list.
_ROOMS = [
  "commands",
  "defences",
  "studies",
  "training",
  "weights",
  "evaluation",
  "model",
  "data",
  "poison",
  "vocabulary",
  "config",
  "stories",
]
_FOUNDATION = {"errors", "user_module", "version"}
_CORPORA_MAY = {"corpora", "data", "poison", "vocabulary", "config", "stories"}
# Numbers of a model that need no JAX, plain arithmetic on `config`; and how
# files are opened.
_SHARED = {"poison_jax.model.counts", "poison_jax.data.open_files"}
_TENSORFLOW = {
  "tensorflow",
  "tensorflow_datasets",
  "tensorflow_text",
  "seqio",
}


def _room(path: pathlib.Path) -> str:
  relative = path.relative_to(_PACKAGE)
  if len(relative.parts) > 1:
    return relative.parts[0]
  name = relative.stem
  below = {"vocabulary", "config", "command"} | _FOUNDATION
  return name if name in below else "commands"


def _imports(path: pathlib.Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def _files():
  return sorted(p for p in _PACKAGE.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", _files(), ids=lambda p: p.stem)
def test_rooms_import_downwards_only(path):
  room = _room(path)
  for name in _imports(path):
    if name.split(".")[0] in _TENSORFLOW:
      assert room == "corpora", f"{path} imports {name}"
    if not name.startswith("poison_jax."):
      continue
    if any(name.startswith(shared) for shared in _SHARED):
      continue
    target = name.split(".")[1]
    if target in _FOUNDATION or target == room:
      continue
    if target == "command":
      assert room == "commands", f"{path} imports {name}"
    elif room == "corpora":
      assert target in _CORPORA_MAY, f"{path} imports {name}"
    elif target == "corpora":
      assert path.name == "prepare.py", f"{path} imports {name}"
    elif room == "command":
      assert target == "config", f"{path} imports {name}"
    else:
      assert target in _ROOMS, f"{path} imports {name}: a room of its own?"
      assert _ROOMS.index(room) < _ROOMS.index(target), (
        f"{path} imports {name}: {room} stands below {target}"
      )


@pytest.mark.parametrize(
  "command", [p.stem for p in _files() if _room(p) == "commands"]
)
def test_a_command_starts_without_tensorflow(command):
  code = (
    f"import sys, poison_jax.{command};"
    f"print(sorted(set(sys.modules) & {_TENSORFLOW!r}))"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert result.stdout == "[]\n", result.stderr
