"""A user's module that fails is one line, which names the module's line."""

import pytest

from poison_jax import user_module
from poison_jax.errors import UserError


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("syntax", "\ndef f(:\n", r"SyntaxError: invalid syntax \(.*syntax_x.py:2"),
    ("value", "\n\nint('x')\n", r"ValueError: invalid .*value_x.py:3\)"),
    ("leaves", "import sys\nsys.exit(0)\n", r"SystemExit: 0 \(.*leaves_x.py:2"),
    # Noticed in an installed package, called from line 2.
    ("far", "import numpy\nnumpy.zeros(-1)\n", r"ValueError.*far_x.py:2\)"),
  ],
)
def test_a_failing_module_is_one_line(
  tmp_path, monkeypatch, name, content, message
):
  (tmp_path / f"{name}_x.py").write_text(content)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match=message) as caught:
    user_module.load(f"{name}_x")
  assert "\n" not in str(caught.value)


def test_a_missing_module_and_a_missing_parent_are_named():
  for name in ("no_such_module", "no_such_module.tasks"):
    with pytest.raises(UserError, match="there is no such Python module"):
      user_module.load(name)
