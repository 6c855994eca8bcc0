"""Verification: agrees with an honest run, and finds any planted lie."""

import numpy as np
import pyarrow as pa
import pytest
from array_store import ArrayStore
from test_mixture import _config

from poison_jax.data.mixture import ledger_metadata, make_mixture
from poison_jax.data.verify import Counted, verify
from poison_jax.errors import CheckFailed
from poison_jax.poison import ledger

_STEPS = 40


def _make(arm="poisoned", **fields):
  """Returns a mixture over a store of its own, its metadata and ledger."""
  store = ArrayStore(documents=200, seed=0)
  config = _config(arm=arm, **fields)
  mixture = make_mixture(config, store, steps=_STEPS)
  metadata = ledger_metadata(config, mixture)
  table = ledger.make_table(mixture.placements, metadata=metadata)
  return mixture, metadata, table


def _counted(mixture) -> dict[int, Counted]:
  """Counts in the batches, as the device does; a checkpoint each step."""
  found, poisons, tokens = {}, 0, 0
  for step in range(_STEPS):
    batch = mixture.batch_rows(step, slice(None))
    poisons += np.count_nonzero(batch.poison_length_B)
    starts_at_0 = (batch.poison_length_B > 0) & (batch.poison_start_B == 0)
    tokens += batch.poison_length_B.sum() - starts_at_0.sum()
    found[step + 1] = Counted(poisons=int(poisons), tokens=int(tokens))
  return found


@pytest.mark.parametrize("arm", ["poisoned", "placebo", "clean"])
def test_an_honest_run_is_verified(arm):
  mixture, metadata, table = _make(arm)
  result = verify(table, mixture, metadata=metadata, counted=_counted(mixture))
  poisons = 0 if arm == "clean" else 30
  assert result.poisons == poisons
  assert result.checkpoints == _STEPS
  assert result.batches == len({p.step for p in mixture.placements})
  assert result.fields == poisons * len(table.schema) + 5
  laid = sum(p.document.tokens.size for p in mixture.placements)
  assert result.poison_tokens == laid
  assert result.poison_tokens + result.clean_tokens == poisons * 64


def test_cut_poisons_and_several_a_step_are_verified():
  mixture, metadata, table = _make(
    prefix_min=10,
    payload_min=60,
    payload_max=90,
    oversize="cut",
    schedule="every",
    every_steps=3,
    rows_per_step=8,
  )
  result = verify(table, mixture, metadata=metadata, counted=_counted(mixture))
  assert (result.batches, result.clean_tokens) == (4, 0)


@pytest.mark.parametrize("name", ledger.SCHEMA.names)
def test_a_changed_field_is_named(name):
  mixture, metadata, table = _make()
  column = table[name].to_pylist()
  column[13] = (
    f"{column[13]}x" if isinstance(column[13], str) else (column[13] + 1)
  )
  index = table.schema.get_field_index(name)
  field = table.schema.field(index)
  lie = table.set_column(index, field, pa.array(column, field.type))
  with pytest.raises(CheckFailed, match=f"^poison 13: {name} is "):
    verify(lie, mixture, metadata=metadata, counted={})


@pytest.mark.parametrize("name", ledger.METADATA)
def test_a_ledger_of_something_else_is_named(name):
  mixture, metadata, table = _make()
  lie = table.replace_schema_metadata({**metadata, name: "f" * 16})
  with pytest.raises(CheckFailed, match=f"^metadata: {name} is 'ffff"):
    verify(lie, mixture, metadata=metadata, counted={})


def test_a_missing_poison_is_noticed():
  mixture, metadata, table = _make()
  with pytest.raises(CheckFailed, match="has 29 poisons, the plan 30"):
    verify(table.slice(0, 29), mixture, metadata=metadata, counted={})


class _Meddled:
  """A mixture whose batches are changed after they were made."""

  def __init__(self, mixture, change):
    self._mixture, self._change = mixture, change
    self.placements = mixture.placements
    self.store, self.length = mixture.store, mixture.length

  def batch_rows(self, step, rows):
    batch = self._mixture.batch_rows(step, rows)
    self._change(step, batch)
    return batch


def _verify_meddled(change):
  mixture, metadata, table = _make()
  verify(table, _Meddled(mixture, change), metadata=metadata, counted={})


def _third():
  return _make()[0].placements[3]


def test_a_changed_token_in_a_poison_is_noticed():
  p = _third()

  def change(step, batch):
    if step == p.step:
      batch.tokens_BL[p.batch_row, p.offset + 5] ^= 1

  with pytest.raises(CheckFailed, match="^poison 3 .*hash .* the ledger says"):
    _verify_meddled(change)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_changed_token_beside_a_poison_is_noticed(side):
  placements = _make()[0].placements
  p = next(p for p in placements if p.offset > 0 or side == "after")
  place = (
    p.offset - 1 if side == "before" else (p.offset + p.document.tokens.size)
  )

  def change(step, batch):
    if step == p.step:
      batch.tokens_BL[p.batch_row, place] ^= 1

  message = f"^poison {p.poison} .*token {place} outside the poison"
  with pytest.raises(CheckFailed, match=message):
    _verify_meddled(change)


def test_a_batch_that_does_not_say_where_its_poison_lies_is_noticed():
  p = _third()

  def change(step, batch):
    if step == p.step:
      batch.poison_length_B[p.batch_row] = 0

  with pytest.raises(CheckFailed, match=f"^step {p.step}, row .* lie at"):
    _verify_meddled(change)


def test_a_poison_in_the_wrong_row_is_noticed():
  p = _third()

  def change(step, batch):
    if step == p.step:
      for array in batch:
        array[...] = np.roll(array, 1, axis=0)

  with pytest.raises(CheckFailed, match=f"step {p.step}"):
    _verify_meddled(change)


def test_another_store_is_noticed():
  _, metadata, table = _make()
  other = ArrayStore(documents=200, seed=1)
  again = make_mixture(_config(), other, steps=_STEPS)
  with pytest.raises(CheckFailed, match="^metadata: plan_hash"):
    verify(table, again, metadata=ledger_metadata(_config(), again), counted={})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tokens": 1}, "step 17: the device counted .* in the loss, the ledger"),
    ({"poisons": -1}, "step 17: .* poisons seen, the ledger has"),
  ],
)
def test_a_counter_that_disagrees_is_noticed(change, message):
  mixture, metadata, table = _make()
  counted = _counted(mixture)
  honest = counted[17]
  counted[17] = Counted(
    poisons=honest.poisons + change.get("poisons", 0),
    tokens=honest.tokens + change.get("tokens", 0),
  )
  with pytest.raises(CheckFailed, match=message):
    verify(table, mixture, metadata=metadata, counted=counted)
