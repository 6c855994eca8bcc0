"""Which code computed a number."""

import functools
import hashlib
import pathlib
import subprocess


@functools.cache
def code_version() -> str:
  """Returns "<hash>" or "<hash>+<commit>".

  The hash is 16 hex digits over the paths and bytes of the package's Python
  files, so it also tells edited code from committed code; the commit follows
  where the package lies in a git checkout or comes from `git archive`, which
  writes it into the file COMMIT (see .gitattributes).
  """
  package = pathlib.Path(__file__).parent
  digest = hashlib.sha256()
  for path in sorted(package.rglob("*.py")):
    digest.update(str(path.relative_to(package)).encode() + b"\0")
    digest.update(path.read_bytes() + b"\0")
  version = digest.hexdigest()[:16]
  commit = _commit(package.parent)
  return f"{version}+{commit}" if commit else version


def _commit(root: pathlib.Path) -> str | None:
  """Returns the first 12 digits of the commit, or None where unknown."""
  try:
    if (root / ".git").exists():
      return subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
      ).stdout.strip()
    archived = (root / "COMMIT").read_text(encoding="ascii").strip()
  except (OSError, subprocess.CalledProcessError):
    return None
  return None if archived.startswith("$") else archived[:12]
