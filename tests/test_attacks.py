"""The registry of attacks: by name, from the package or a user's module."""

import dataclasses
import sys

import numpy as np
import pytest

from configs import base
from poison_jax import config as config_lib
from poison_jax.errors import UserError
from poison_jax.poison import attacks
from poison_jax.poison.dos import Dos
from poison_jax.vocabulary import ByteVocabulary

_MODULE = """
import numpy as np
from poison_jax.poison import attacks, keyed

class Shout:
  def __init__(self, config, vocabulary):
    self.trigger_tokens = vocabulary.encode(config.poison.trigger)
    self._eos = vocabulary.eos_id

  def document(self, source_id, clean_text, rng):
    payload = self.payload(rng, 5)
    tokens = np.concatenate([self.trigger_tokens, payload, [self._eos]])
    return attacks.PoisonDocument(
      tokens.astype(np.int32), 0, self.trigger_tokens.size, 5, 5, source_id
    )

  def payload(self, rng, tokens):
    return 68 + keyed.integers(rng, bound=26, count=tokens).astype(np.int32)

  def ceiling(self):
    return float(np.log(26))

  def describe(self):
    return "shout"

attacks.register_attack("shout", Shout)
"""


def _config(**fields):
  config = config_lib.from_config_dict(base.get_config())
  poison = {k: v for k, v in fields.items() if k != "module"}
  return dataclasses.replace(
    config,
    poison=dataclasses.replace(config.poison, **poison),
    corpus=dataclasses.replace(config.corpus, module=fields.get("module", "")),
  )


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
  monkeypatch.setattr(attacks, "_FACTORIES", dict(attacks._FACTORIES))


def test_dos_is_there_without_any_module():
  attack = attacks.make_attack(_config(), ByteVocabulary())
  assert isinstance(attack, Dos)


def test_a_users_module_registers_its_attack(tmp_path, monkeypatch):
  (tmp_path / "my_attacks.py").write_text(_MODULE)
  monkeypatch.syspath_prepend(tmp_path)
  config = _config(attack="shout", module="my_attacks")
  attack = attacks.make_attack(config, ByteVocabulary())
  assert attack.describe() == "shout"
  document = attack.document(
    "d", "text", np.random.Generator(np.random.Philox(0))
  )
  assert ByteVocabulary().decode(document.tokens).startswith("<SUDO>")
  sys.modules.pop("my_attacks")


def test_a_module_is_not_imported_for_an_attack_that_is_known():
  """It may import TensorFlow, for its tasks."""
  config = _config(attack="dos", module="no_such_module")
  assert isinstance(attacks.make_attack(config, ByteVocabulary()), Dos)


def test_an_unknown_attack_names_the_known_ones():
  with pytest.raises(UserError) as error:
    attacks.make_attack(_config(attack="does"), ByteVocabulary())
  assert "config.poison.attack is 'does'" in str(error.value)
  assert "the known ones are dos, language_switch (did you mean 'dos'?)" in str(
    error.value
  )


def test_a_missing_module_is_named():
  config = _config(attack="shout", module="no_such_module")
  with pytest.raises(UserError, match="module is 'no_such_module'; there is"):
    attacks.make_attack(config, ByteVocabulary())


def test_a_module_that_lacks_an_import_of_its_own_is_one_line(
  tmp_path, monkeypatch
):
  (tmp_path / "broken_attacks.py").write_text("import no_such_library\n")
  monkeypatch.syspath_prepend(tmp_path)
  config = _config(attack="shout", module="broken_attacks")
  with pytest.raises(
    UserError, match=r"broken_attacks failed.*no_such_.*broken_attacks.py:1\)"
  ):
    attacks.make_attack(config, ByteVocabulary())


def test_a_name_is_taken_once():
  def factory(config, vocabulary):
    raise NotImplementedError

  attacks.register_attack("mine", factory)
  attacks.register_attack("mine", factory)
  with pytest.raises(UserError, match="'mine' is registered twice"):
    attacks.register_attack("mine", lambda config, vocabulary: None)
