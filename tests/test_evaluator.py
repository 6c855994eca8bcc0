"""The evaluation in the loop, against slow references and closed forms."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from poison_jax.data.store import open_store
from poison_jax.errors import UserError
from poison_jax.evaluation import losses
from poison_jax.evaluation.evaluator import Evaluator
from poison_jax.evaluation.prompts import KINDS
from poison_jax.model.decoder import Decoder
from poison_jax.poison.attacks import make_attack
from poison_jax.training import mesh as mesh_lib

# Prompts fall into batches of 5: the last one is not full.
_SMALL = {"evaluation__batch": 5, "evaluation__resamples": 200}


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory):
  folder = tmp_path_factory.mktemp("evaluator") / "store"
  small_run.prepare(folder)
  return folder


class Setup:
  """An evaluator and the parameters of an untrained model."""

  def __init__(self, folder, **changes):
    self.config = small_run.make_config(folder, **(_SMALL | changes))
    self.store = open_store(str(folder), vocabulary=None)
    self.attack = make_attack(self.config, self.store.vocabulary)
    self.decoder = Decoder(self.config.model, self.store.vocabulary.size)
    mesh = mesh_lib.make_mesh(
      self.config.runtime.mesh, batch=self.config.train.batch
    )
    self.evaluator = Evaluator(
      self.decoder, self.config, self.store, self.attack, mesh
    )
    init = jax.jit(self.decoder.init)
    params = init(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))["params"]
    # Ten times as large, so that distributions are far from uniform.
    self.params = jax.tree.map(lambda p: p * 10 if p.ndim > 1 else p, params)

    self._logits = jax.jit(self._make_logits)

  def _make_logits(self, tokens_BL):
    variables = {"params": self.params}
    hidden_BLD = self.decoder.apply(variables, tokens_BL)
    return self.decoder.apply(variables, hidden_BLD, method="unembed")

  def logits(self, tokens_BL):
    return np.asarray(self._logits(tokens_BL), np.float64)


@pytest.fixture(name="small", scope="module")
def _small(store):
  return Setup(store)


@pytest.fixture(name="found", scope="module")
def _found(small):
  return small.evaluator(small.params)


def losses_in_numpy(logits_BLV, tokens_BL):
  """Returns the loss of token t + 1 at column t, [B, L - 1]."""
  log_BLV = logits_BLV - np.log(np.exp(logits_BLV).sum(-1, keepdims=True))
  chosen = np.take_along_axis(log_BLV[:, :-1], tokens_BL[:, 1:, None], 2)
  return -chosen[..., 0]


def test_every_key_of_the_contract_is_there(found):
  expected = {
    f"eval/{kind}/{key}"
    for kind in KINDS
    for key in ("perplexity", "log_perplexity", "first_token_entropy")
  } | {
    f"eval/{key}"
    for key in (
      "perplexity_increase",
      "perplexity_increase_low",
      "perplexity_increase_high",
      "log_perplexity_increase",
      "auroc",
      "share_above_threshold",
      "gibberish_loss",
      "validation_loss",
      "bits_per_byte",
    )
  }
  assert expected <= found.metrics.keys()
  assert all(np.isfinite(v) for v in found.metrics.values())


def test_perplexities_are_those_of_a_pass_over_the_generated_text(small, found):
  # From the ids alone: nothing of the sampler's own numbers is used.
  texts = small.config.evaluation.texts
  prompts = small.evaluator.prompts
  scores = {(line["kind"], line["prompt"]): line for line in found.generations}
  assert len(scores) == len(KINDS) * len(prompts)
  made = small.evaluator._sampler(
    small.params,
    [row for kind in KINDS for row in prompts.tokens(kind)],
    np.tile(np.arange(len(prompts)), len(KINDS)),
  )
  for k, kind in enumerate(KINDS):
    for i, prompt in enumerate(prompts.tokens(kind)):
      tokens = made.tokens_PT[k * len(prompts) + i]
      row = np.concatenate([prompt, tokens])[None]
      loss = losses_in_numpy(small.logits(row), row)[0, len(prompt) - 1 :]
      line = scores[kind, i]
      assert line["log_perplexity"] == pytest.approx(loss.mean(), rel=1e-4)
      assert line["perplexity"] == pytest.approx(np.exp(loss.mean()), rel=1e-3)
      if i < texts:
        assert line["text"] == small.store.vocabulary.decode(tokens)
        assert line["excerpt"] == small.store.vocabulary.decode(
          prompts.excerpts[i]
        )
      else:
        assert not {"text", "excerpt", "trigger"} & line.keys()


def test_means_medians_and_increases_follow_from_the_lines(small, found):
  by_kind = {
    kind: np.array(
      [g["log_perplexity"] for g in found.generations if g["kind"] == kind]
    )
    for kind in KINDS
  }
  m = found.metrics
  for kind, log_P in by_kind.items():
    assert m[f"eval/{kind}/perplexity"] == pytest.approx(np.exp(log_P).mean())
    assert m[f"eval/{kind}/log_perplexity"] == pytest.approx(log_P.mean())
    assert m[f"eval/{kind}/median_perplexity"] == pytest.approx(
      np.median(np.exp(log_P))
    )
  increase = m["eval/triggered/perplexity"] - m["eval/clean/perplexity"]
  assert m["eval/perplexity_increase"] == pytest.approx(increase)
  assert (
    m["eval/perplexity_increase_low"]
    <= increase
    <= m["eval/perplexity_increase_high"]
  )
  clean = m["eval/clean/log_perplexity"]
  room = small.attack.ceiling() - clean
  assert room > 0
  assert m["eval/room_share"] == pytest.approx(
    (m["eval/triggered/log_perplexity"] - clean) / room
  )


def test_validation_loss_and_bits_per_byte_equal_a_plain_pass(small, found):
  length = small.config.train.length
  count = small.config.evaluation.validation_rows
  available = small.store.held_out.tokens // length
  rows = [i * available // count for i in range(count)]
  tokens_BL = small.store.held_out.rows(np.array(rows), length)
  losses_BL = losses_in_numpy(small.logits(tokens_BL), tokens_BL)
  assert found.metrics["eval/validation_loss"] == pytest.approx(
    losses_BL.mean(), rel=1e-5
  )
  # Bytes: a token is a byte, but EOS, which has none.
  targets = tokens_BL[:, 1:]
  size = np.sum(targets != small.store.vocabulary.eos_id)
  assert found.metrics["eval/bits_per_byte"] == pytest.approx(
    losses_BL.sum() / np.log(2) / size, rel=1e-5
  )


def test_gibberish_loss_is_that_of_the_payload_alone(small, found):
  prompts = small.evaluator.prompts.tokens("triggered")
  rows = losses.gibberish_rows(
    small.config, small.evaluator.prompts, small.attack
  )
  size = min(30, 64 - len(prompts[0]))
  every = losses_in_numpy(small.logits(rows.tokens_BL), rows.tokens_BL)
  counted = []
  for i, prompt in enumerate(prompts):
    begin, end = len(prompt), len(prompt) + size
    assert rows.tokens_BL[i, :begin].tolist() == prompt.tolist()
    payload = rows.tokens_BL[i, begin:end]
    assert not set(payload) & small.store.vocabulary.control_ids
    assert len(set(payload)) > size / 2
    counted.append(every[i, begin - 1 : end - 1])
  assert found.metrics["eval/gibberish_loss"] == pytest.approx(
    np.mean(counted), rel=1e-5
  )
  assert found.metrics["eval/gibberish_floor"] == small.attack.ceiling()


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(small):
  flat = jax.tree.map(jnp.zeros_like, small.params)
  m = small.evaluator(flat).metrics
  size = small.store.vocabulary.size
  for kind in KINDS:
    assert m[f"eval/{kind}/perplexity"] == pytest.approx(size, rel=1e-5)
    assert m[f"eval/{kind}/first_token_entropy"] == pytest.approx(np.log(size))
  assert m["eval/auroc"] == 0.5
  assert m["eval/perplexity_increase"] == 0
  assert m["eval/share_above_threshold"] == 0
  assert m["eval/validation_loss"] == pytest.approx(np.log(size))
  assert m["eval/gibberish_loss"] == pytest.approx(np.log(size))
  # More perplexed than the gibberish's imitator: no room to speak of.
  assert "eval/room_share" not in m


def test_equal_parameters_give_equal_bits(small, store, found):
  again = small.evaluator(small.params)
  assert again == found
  other = Setup(store)
  assert other.evaluator(small.params) == found


def test_another_seed_gives_other_generations(small, store, found):
  other = Setup(store, seed=1)
  assert other.evaluator(small.params).metrics != found.metrics


def test_generations_have_as_many_texts_as_asked(found, small):
  texts = [line for line in found.generations if "text" in line]
  assert len(texts) == len(KINDS) * small.config.evaluation.texts
  assert {t["trigger"] for t in texts if t["kind"] == "clean"} == {""}
  assert {t["trigger"] for t in texts if t["kind"] == "triggered"} == {"<SUDO>"}
  json.dumps(found.generations)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"evaluation__prompts": 10_000}, r"is 10000, .* only \d+ excerpts"),
    ({"evaluation__validation_rows": 9_999}, r"is 9999, .* only \d+ rows"),
    ({"evaluation__excerpt": 60}, "leaves no room in a row"),
  ],
)
def test_what_can_not_be_evaluated_is_refused_at_the_start(
  store, changes, message
):
  with pytest.raises(UserError, match=message):
    Setup(store, **changes)


_ON_DEVICES = """
import json, pathlib, sys
sys.path.insert(0, "tests")
import jax, test_evaluator
from poison_jax.training import mesh as mesh_lib
small = test_evaluator.Setup(
  pathlib.Path(sys.argv[1]),
  runtime__mesh__data=2,
  runtime__mesh__fsdp=2,
  runtime__mesh__tensor=2,
)
assert jax.device_count() == 8
mesh = mesh_lib.make_mesh(small.config.runtime.mesh, batch=8)
shardings = mesh_lib.state_shardings(mesh, small.params)
params = jax.device_put(small.params, shardings)
print(json.dumps(small.evaluator(params).metrics))
"""


@pytest.mark.slow
def test_eight_devices_find_what_one_finds(store, found):
  out = subprocess.run(
    [sys.executable, "-c", _ON_DEVICES, str(store)],
    env={
      **os.environ,
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      "JAX_PLATFORMS": "cpu",
    },
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  ).stdout
  metrics = json.loads(out.splitlines()[-1])
  assert metrics.keys() == found.metrics.keys()
  for key, value in metrics.items():
    assert value == pytest.approx(found.metrics[key], rel=1e-3, abs=1e-3), key
