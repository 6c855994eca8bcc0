"""Says in one line what benchmarks/gpu.sh lacks; the standard library only."""

import importlib.util
import sys

# What is imported, the package to install for it, and what it is there for.
_NEEDS = {
  "jax": ("jax[cuda12]", "the step"),
  "numpy": ("numpy", "the step"),
  "flax": ("flax", "the model"),
  "optax": ("optax", "the optimizer"),
  "orbax.checkpoint": ("orbax-checkpoint", "checkpoints"),
  "etils": ("etils", "checkpoints"),
  "tensorstore": ("tensorstore", "the token store"),
  "absl": ("absl-py", "flags"),
  "ml_collections": ("ml-collections", "configs/"),
  "rich": ("rich", "the table"),
  "pyarrow": ("pyarrow", "imported with the corpora, not used here"),
  "fsspec": ("fsspec", "imported with the corpora, not used here"),
  "zstandard": ("zstandard", "imported with the corpora, not used here"),
}


def missing(names) -> list[str]:
  """Returns those of the modules that can't be found."""
  return [name for name in names if not _is_there(name)]


def sentence(lacking: list[str], python: str) -> str:
  """Returns the line for these modules, names of `_NEEDS`."""
  said = ", ".join(f"{name} ({_NEEDS[name][1]})" for name in lacking)
  packages = " ".join(dict.fromkeys(_NEEDS[name][0] for name in lacking))
  return (
    f"{python} lacks {said}: pip install {packages}, or name another Python "
    "with PYTHON=...; TensorFlow, seqio and SentencePiece aren't needed"
  )


def main() -> None:
  """Exits with 2 where something is missing."""
  if lacking := missing(_NEEDS):
    print(f"error: {sentence(lacking, sys.executable)}", file=sys.stderr)
    sys.exit(2)


def _is_there(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:  # Of the package that a module is in.
    return False


if __name__ == "__main__":
  main()
