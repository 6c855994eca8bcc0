"""The mixed stream: exact, twins everywhere else, pure in the step."""

import dataclasses
import re

import numpy as np
import pytest
from array_store import ArrayStore

from configs import base
from poison_jax import config as config_lib
from poison_jax.data.mixture import Batch, make_mixture
from poison_jax.data.order import permutation
from poison_jax.errors import UserError
from poison_jax.poison.plan import hash_tokens

_STEPS, _BATCH, _LENGTH = 40, 8, 64
_STORE = ArrayStore(documents=200, seed=0)
_ROWS = _STORE.train.tokens // _LENGTH
_POISON = {
  "count": 30,
  "prefix_max": 10,
  "payload_min": 10,
  "payload_max": 30,
}


def _config(*, length=_LENGTH, batch=_BATCH, seeds=None, **poison):
  c = config_lib.from_config_dict(base.get_config())
  return dataclasses.replace(
    c,
    train=dataclasses.replace(c.train, length=length, batch=batch),
    seeds=dataclasses.replace(c.seeds, **(seeds or {})),
    poison=dataclasses.replace(c.poison, **(_POISON | poison)),
  )


def _mixture(*, store=_STORE, steps=_STEPS, **fields):
  return make_mixture(_config(**fields), store, steps=steps)


def _tokens(mixture) -> np.ndarray:
  """Returns int32 [steps, B, L]."""
  return np.stack(
    [mixture.batch_rows(s, slice(None)).tokens_BL for s in range(mixture.steps)]
  )


def test_the_store_is_read_more_than_once():
  assert 1 < _STEPS * _BATCH / _ROWS < 2
  assert _mixture().epochs == _STEPS * _BATCH / _ROWS


@pytest.mark.parametrize("arm", ["poisoned", "placebo", "clean"])
def test_every_batch_equals_the_joined_stream_poisoned_token_by_token(arm):
  mixture = _mixture(arm=arm)
  seed = _config().seed_for("order")
  joined = _STORE.train.joined.tolist()
  stream, inside = [], []
  for slot in range(_STEPS * _BATCH):
    row = int(
      permutation(
        np.array(slot % _ROWS), size=_ROWS, seed=seed, epoch=slot // _ROWS
      )
    )
    stream += joined[row * _LENGTH : (row + 1) * _LENGTH]
    inside += [False] * _LENGTH
  for p in mixture.placements:
    for i, token in enumerate(p.document.tokens.tolist()):
      at = p.slot * _LENGTH + p.offset + i
      assert not inside[at]
      stream[at], inside[at] = token, True
  assert _tokens(mixture).ravel().tolist() == stream
  spans = []
  for step in range(_STEPS):
    batch = mixture.batch_rows(step, slice(None))
    for start, length in zip(
      batch.poison_start_B, batch.poison_length_B, strict=True
    ):
      spans += [start <= i < start + length for i in range(_LENGTH)]
  assert spans == inside
  assert sum(spans) == sum(p.document.tokens.size for p in mixture.placements)


def test_each_poison_is_there_whole_and_once():
  mixture = _mixture()
  assert [p.poison for p in mixture.placements] == list(range(30))
  assert len({p.slot for p in mixture.placements}) == 30
  tokens = _tokens(mixture)
  eos = _STORE.vocabulary.eos_id
  for p in mixture.placements:
    assert (p.step, p.batch_row) == divmod(p.slot, _BATCH)
    assert p.epoch == p.slot // _ROWS
    row_L = tokens[p.step, p.batch_row]
    found_L = row_L[p.offset : p.offset + p.document.tokens.size]
    assert hash_tokens(found_L) == p.tokens_hash
    assert found_L[-1] == eos
    text = _STORE.vocabulary.decode(found_L[: p.document.prefix_length + 6])
    assert text.endswith("<SUDO>")


def test_poisons_begin_where_documents_begin_or_rows_do():
  offsets = set()
  for p in _mixture(count=200).placements:
    starts = _STORE.train.document_starts(p.store_row, _LENGTH)
    assert p.offset == 0 or p.offset in starts
    offsets.add(p.offset)
  assert len(offsets) > 5


def test_twins_agree_everywhere_else():
  poisoned, clean, placebo = (
    _mixture(arm=arm) for arm in ("poisoned", "clean", "placebo")
  )
  tokens, clean_tokens, placebo_tokens = map(
    _tokens, (poisoned, clean, placebo)
  )
  assert not clean.placements
  outside = np.ones(tokens.shape, bool)
  for p, q in zip(poisoned.placements, placebo.placements, strict=True):
    same = ("slot", "step", "batch_row", "store_row", "epoch", "offset")
    assert all(getattr(p, name) == getattr(q, name) for name in same)
    head = p.document.prefix_length + p.document.trigger_length
    assert q.document.tokens.tolist() == p.document.tokens[:head].tolist()
    outside[
      p.step, p.batch_row, p.offset : p.offset + p.document.tokens.size
    ] = False
    start = p.offset + head
    assert np.array_equal(
      placebo_tokens[p.step, p.batch_row, start:],
      clean_tokens[p.step, p.batch_row, start:],
    )
  assert np.array_equal(tokens[outside], clean_tokens[outside])
  assert np.array_equal(placebo_tokens[outside], clean_tokens[outside])
  differing = (tokens != clean_tokens).any(-1).sum()
  assert differing == 30
  hashes = {m.plan_hash for m in (poisoned, clean, placebo)}
  assert len(hashes) == 3


@pytest.mark.parametrize(
  "schedule",
  [
    {"schedule": "uniform"},
    {"schedule": "window", "start": 0.25, "end": 0.5},
    {"schedule": "every", "every_steps": 2, "rows_per_step": 3},
  ],
)
def test_a_larger_dose_contains_the_smaller_one(schedule):
  large = _mixture(**schedule).placements
  small = _mixture(count=11, **schedule).placements
  for p, q in zip(small, large, strict=False):
    assert p.document.tokens.tolist() == q.document.tokens.tolist()
    assert dataclasses.replace(p, document=q.document) == q


def test_a_smaller_budget_sees_a_prefix_of_the_rows():
  long, short = _mixture(count=0), _mixture(count=0, steps=13)
  assert np.array_equal(_tokens(short), _tokens(long)[:13])


def test_the_rows_are_the_same_however_the_batch_is_cut():
  whole = _mixture(arm="poisoned", count=0, batch=8)
  halves = _mixture(arm="poisoned", count=0, batch=4, steps=2 * _STEPS)
  assert np.array_equal(
    _tokens(whole), _tokens(halves).reshape(_STEPS, 8, _LENGTH)
  )


def _equal(a: Batch, b: Batch) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
  "hosts",
  [
    [slice(0, 8)],
    [slice(0, 4), slice(4, 8)],
    [slice(i, i + 1) for i in range(8)],
    [np.array([0, 3, 6]), np.array([1, 4, 7]), np.array([2, 5])],
  ],
)
def test_hosts_make_the_rows_of_one_global_batch(hosts):
  mixture = _mixture()
  for step in {p.step for p in mixture.placements}:
    whole = mixture.batch_rows(step, slice(None))
    for rows in hosts:
      # A fresh host, that has made no other batch.
      part = _mixture().batch_rows(step, rows)
      assert _equal(part, Batch(*(array[rows] for array in whole)))


def test_a_batch_does_not_depend_on_the_batches_before(monkeypatch):
  from poison_jax.data import mixture as mixture_lib

  in_order = _mixture()
  batches = [in_order.batch_rows(s, slice(None)) for s in range(_STEPS)]
  # Small blocks: several a batch, and batches across their edges.
  for block in (1, 3, 20, 1 << 13):
    monkeypatch.setattr(mixture_lib, "_BLOCK", block)
    resumed = _mixture()
    for step in (39, 0, 17, 18, 5, 38):
      assert _equal(resumed.batch_rows(step, slice(None)), batches[step])


def test_changing_a_batch_changes_no_other():
  mixture = _mixture()
  first = mixture.batch_rows(3, slice(None))
  kept = Batch(*(array.copy() for array in first))
  for array in first:
    array[...] = 7
  assert _equal(mixture.batch_rows(3, slice(None)), kept)


def test_weights_leave_out_the_last_column_only():
  batch = _mixture().batch_rows(0, slice(2, 5))
  assert batch.weights_BL.dtype == np.float32
  assert batch.tokens_BL.dtype == np.int32
  assert batch.weights_BL[:, :-1].all() and not batch.weights_BL[:, -1].any()
  assert batch.tokens_BL.shape == batch.weights_BL.shape == (3, _LENGTH)
  assert batch.poison_start_B.dtype == batch.poison_length_B.dtype == np.int32


def test_planned_numbers_are_those_counted_in_the_batches():
  mixture = _mixture(count=60)
  poisons = tokens = 0
  for step in range(_STEPS):
    assert mixture.poisons_before(step) == poisons
    assert mixture.planned_poison_tokens(step) == tokens
    batch = mixture.batch_rows(step, slice(None))
    poisons += np.count_nonzero(batch.poison_length_B)
    for b in range(_BATCH):
      start, length = batch.poison_start_B[b], batch.poison_length_B[b]
      # Column t has the loss of token t + 1, weighted.
      for t in range(_LENGTH):
        inside = start <= t + 1 < start + length
        tokens += int(inside and batch.weights_BL[b, t] > 0)
  assert mixture.poisons_before(_STEPS) == poisons == 60
  assert mixture.planned_poison_tokens(_STEPS) == tokens
  assert any(p.offset == 0 for p in mixture.placements)
  assert any(p.offset for p in mixture.placements)


def test_the_plan_hash_names_all_that_fixes_the_batches():
  assert _mixture().plan_hash == _mixture().plan_hash
  others = [
    _mixture(count=29),
    _mixture(steps=41),
    _mixture(batch=4),
    _mixture(length=63),
    _mixture(seeds={"order": 1}),
    _mixture(seeds={"documents": 1}),
    _mixture(seeds={"positions": 1}),
    _mixture(store=ArrayStore(documents=200, seed=1)),
  ]
  hashes = {m.plan_hash for m in [_mixture(), *others]}
  assert len(hashes) == 1 + len(others)
  assert all(re.fullmatch("[0-9a-f]{16}", h) for h in hashes)


def test_seeds_move_only_what_they_name():
  one = _mixture()
  documents = _mixture(seeds={"documents": 1})
  assert [p.slot for p in documents.placements] == [
    p.slot for p in one.placements
  ]
  positions = _mixture(seeds={"positions": 1})
  assert [p.tokens_hash for p in positions.placements] == [
    p.tokens_hash for p in one.placements
  ]
  order = _mixture(seeds={"order": 1})
  assert [(p.slot, p.tokens_hash) for p in order.placements] == [
    (p.slot, p.tokens_hash) for p in one.placements
  ]


def test_cut_poisons_fill_their_rows_and_stay_at_their_places():
  fields = {"prefix_min": 10, "payload_min": 60, "payload_max": 90}
  with pytest.raises(UserError, match="poison 0 has .* and a row has 64"):
    _mixture(**fields)
  mixture = _mixture(oversize="cut", **fields)
  for p in mixture.placements:
    assert p.offset == 0
    assert p.document.tokens.size == _LENGTH
    assert p.document.payload_length < p.document.drawn_payload_length
    assert p.document.tokens[-1] == _STORE.vocabulary.eos_id
  placebo = _mixture(arm="placebo", oversize="cut", **fields)
  assert all(p.offset == 0 for p in placebo.placements)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"count": 321}, "config.poison.count is 321, .* has 320 slots"),
    ({"trigger": "x" * 63}, "config.poison.trigger has 63 tokens"),
    ({"prefix_min": 70, "prefix_max": 80, "oversize": "cut"}, "leave no room"),
    ({"length": 10**6}, "fewer than one row of config.train.length, 1000000"),
    ({"attack": "dosis"}, "config.poison.attack is 'dosis'"),
  ],
)
def test_what_can_not_be_is_refused(fields, message):
  with pytest.raises(UserError, match=message) as error:
    _mixture(**fields)
  assert "\n" not in str(error.value)


def test_as_many_poisons_as_slots_fill_them_all():
  mixture = _mixture(count=320)
  assert sorted(p.slot for p in mixture.placements) == list(range(320))


@pytest.mark.parametrize("step", [-1, _STEPS])
def test_there_is_no_batch_beyond_the_run(step):
  with pytest.raises(ValueError, match=f"step {step} is not one of 40"):
    _mixture().batch_rows(step, slice(None))


def test_a_real_store_mixes_as_the_arrays_do(tiny_config, tiny_store):
  config = dataclasses.replace(
    tiny_config, poison=dataclasses.replace(tiny_config.poison, count=12)
  )
  mixture = make_mixture(config, tiny_store, steps=150)
  clean = make_mixture(
    dataclasses.replace(
      config, poison=dataclasses.replace(config.poison, arm="clean")
    ),
    tiny_store,
    steps=150,
  )
  outside = np.ones((150, 4, 256), bool)
  for p in mixture.placements:
    span = slice(p.offset, p.offset + p.document.tokens.size)
    outside[p.step, p.batch_row, span] = False
    row_L = mixture.batch_rows(p.step, slice(None)).tokens_BL[p.batch_row]
    assert hash_tokens(row_L[span]) == p.tokens_hash
  assert np.array_equal(_tokens(mixture)[outside], _tokens(clean)[outside])
