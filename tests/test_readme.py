"""README's own examples run."""

import pathlib
import re
import sys

from configs import tiny
from poison_jax import config as config_lib
from poison_jax.data.mixture import make_mixture

_ROOT = pathlib.Path(__file__).parent.parent


def test_the_attack_in_the_readme_makes_poisons(
  tiny_store, tmp_path, monkeypatch
):
  text = (_ROOT / "README.md").read_text(encoding="utf-8")
  (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  (tmp_path / "shouting.py").write_text(code)
  monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
  c = tiny.get_config("poisons=5")
  c.corpus.module = "shouting"
  c.poison.attack = "shouting"
  config = config_lib.from_config_dict(c)
  mixture = make_mixture(config, tiny_store, steps=50)
  assert len(mixture.placements) == 5
  for placement in mixture.placements:
    document = placement.document
    head = document.prefix_length + document.trigger_length
    text = tiny_store.vocabulary.decode(document.tokens[head:-1])
    assert text == text.upper()


def test_every_file_and_command_that_the_readme_names_exists():
  text = (_ROOT / "README.md").read_text(encoding="utf-8")
  for command in set(re.findall(r"(?:-m |`)poison_jax\.([a-z_]+) ", text)):
    assert (_ROOT / "poison_jax" / f"{command}.py").exists(), command
  for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
    assert (_ROOT / path).exists(), path
