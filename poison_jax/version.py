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
  where the package lies in a git checkout.
  """
  package = pathlib.Path(__file__).parent
  digest = hashlib.sha256()
  for path in sorted(package.rglob("*.py")):
    digest.update(str(path.relative_to(package)).encode() + b"\0")
    digest.update(path.read_bytes() + b"\0")
  version = digest.hexdigest()[:16]
  if not (package.parent / ".git").exists():
    return version
  try:
    commit = subprocess.run(
      ["git", "-C", str(package.parent), "rev-parse", "--short=12", "HEAD"],
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return version
  return f"{version}+{commit}"
