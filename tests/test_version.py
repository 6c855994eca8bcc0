"""The commit is known in a checkout, and where `git archive` was unpacked."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent


def _version(folder):
  code = "from poison_jax import version; print(version.code_version())"
  result = subprocess.run(
    [sys.executable, "-c", code],
    cwd=folder,
    capture_output=True,
    text=True,
    check=True,
  )
  return result.stdout.strip()


@pytest.mark.parametrize(
  ("content", "commit"),
  [
    ("0123456789abcdef0123456789abcdef01234567\n", r"\+0123456789ab"),
    ("$Format:%H$\n", ""),  # A copy of a checkout, without its .git.
    (None, ""),
  ],
)
def test_an_archive_tells_its_commit(tmp_path, content, commit):
  (tmp_path / "poison_jax").mkdir()
  for name in ("__init__.py", "version.py"):
    shutil.copy(_ROOT / "poison_jax" / name, tmp_path / "poison_jax")
  if content:
    (tmp_path / "COMMIT").write_text(content)
  assert re.fullmatch(rf"[0-9a-f]{{16}}{commit}", _version(tmp_path))
