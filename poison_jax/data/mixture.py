"""The mixed stream: clean rows in a keyed order, poisons laid over them.

The content of a global batch is a pure function of (store, plan, seed, step):
the same on any number of hosts or devices, after any kill and resume, with no
iterator state to save.
"""

import bisect
import hashlib
import itertools
import json
from typing import NamedTuple

import numpy as np

from poison_jax.config import Config, config_hash
from poison_jax.data import order
from poison_jax.data.store import TokenStore
from poison_jax.errors import UserError
from poison_jax.poison import attacks, plan, schedules
from poison_jax.poison.attacks import Attack
from poison_jax.poison.plan import Placement

# Slots whose store rows are worked out at once: one pass of the network costs
# 100 microseconds however few they are.
_BLOCK = 1 << 13


class Batch(NamedTuple):
  """Rows of one global batch.

  Attributes:
    tokens_BL: int32; inputs, and shifted by one the targets.
    weights_BL: float32; weight of the loss on the token after each position:
      1, and 0 in the last column, which has none.
    poison_start_B: int32; where the row's poison begins, 0 without one.
    poison_length_B: int32; its tokens, EOS included; 0 without one.
  """

  tokens_BL: np.ndarray
  weights_BL: np.ndarray
  poison_start_B: np.ndarray
  poison_length_B: np.ndarray


class Mixture:
  """The batches of a run, as a function of the step.

  Attributes:
    steps: steps of the run.
    batch: rows of a global batch.
    length: tokens of a row.
    store: the token store.
    attack: made the poisons; evaluation asks it for the trigger.
    placements: the poisons in order of k; none in a clean run.
    plan_hash: 16 hex digits over all that fixes the content of every batch.
    epochs: passes over the store, a fraction included.
  """

  def __init__(
    self,
    *,
    steps: int,
    batch: int,
    length: int,
    order_seed: int,
    store: TokenStore,
    attack: Attack,
    placements: tuple[Placement, ...],
  ):
    self.steps = steps
    self.batch = batch
    self.length = length
    self.store = store
    self.attack = attack
    self.placements = placements
    self._order_seed = order_seed
    self._rows_in_store = rows_in_store(store, length)
    self.epochs = steps * batch / self._rows_in_store
    self._blocks: dict[int, np.ndarray] = {}
    self._by_step: dict[int, list[Placement]] = {}
    in_time = sorted(placements, key=lambda p: p.slot)
    for placement in in_time:
      self._by_step.setdefault(placement.step, []).append(placement)
    self._poisoned_steps = [p.step for p in in_time]
    self._loss_tokens = [
      0,
      *itertools.accumulate(p.loss_tokens for p in in_time),
    ]
    self.plan_hash = self._hash()

  def batch_rows(self, step: int, rows: np.ndarray | slice) -> Batch:
    """Returns these rows of the global batch of `step`.

    Args:
      step: from 0 to steps - 1.
      rows: rows of the global batch, in the order wanted.

    Raises:
      ValueError: there is no such step or row.
    """
    rows_B = np.arange(self.batch)[rows]
    return self.overlay(step, rows_B, self.clean_rows(step, rows_B))

  def clean_rows(self, step: int, rows_B: np.ndarray) -> np.ndarray:
    """Returns these rows of `step` without poisons, int32 BL, not shared.

    The same for all runs of one store, order seed, batch and length.

    Raises:
      ValueError: there is no such step.
    """
    if not 0 <= step < self.steps:
      raise ValueError(f"step {step} is not one of {self.steps}")
    store_rows_B = self._store_rows(step * self.batch + rows_B)
    return self.store.train.rows(store_rows_B, self.length)

  def overlay(
    self, step: int, rows_B: np.ndarray, tokens_BL: np.ndarray
  ) -> Batch:
    """Lays the poisons of `step` over its clean rows, in place.

    Args:
      step: from 0 to steps - 1.
      rows_B: rows of the global batch.
      tokens_BL: what `clean_rows` gave for them.
    """
    start_B = np.zeros(rows_B.size, np.int32)
    length_B = np.zeros(rows_B.size, np.int32)
    for placement in self._by_step.get(step, ()):
      for i in np.flatnonzero(rows_B == placement.batch_row):
        poison = placement.document.tokens
        start, end = placement.offset, placement.offset + poison.size
        tokens_BL[i, start:end] = poison
        start_B[i], length_B[i] = start, poison.size
    weights_BL = np.ones(tokens_BL.shape, np.float32)
    weights_BL[:, -1] = 0
    return Batch(tokens_BL, weights_BL, start_B, length_B)

  def poisons_before(self, step: int) -> int:
    """Returns how many poisons lie in the steps before `step`."""
    return bisect.bisect_left(self._poisoned_steps, step)

  def planned_poison_tokens(self, step: int) -> int:
    """Returns how many poison tokens are targets in the steps before `step`.

    A poison's are all its tokens, minus one where it starts at offset 0.
    """
    return self._loss_tokens[self.poisons_before(step)]

  def _store_rows(self, slots_B: np.ndarray) -> np.ndarray:
    """Returns the store rows that slots of one step read, int64."""
    if not slots_B.size:
      return slots_B
    first, last = int(slots_B.min()) // _BLOCK, int(slots_B.max()) // _BLOCK
    if last - first > 1:
      return self._order(slots_B)
    blocks = {}
    for block in range(first, last + 1):
      blocks[block] = self._blocks.get(block)
      if blocks[block] is None:
        start = block * _BLOCK
        blocks[block] = self._order(np.arange(start, start + _BLOCK))
    # Replaced in one go: other threads see the old ones or the new ones.
    self._blocks = blocks
    joined = np.concatenate([blocks[b] for b in range(first, last + 1)])
    return joined[slots_B - first * _BLOCK]

  def _order(self, slots: np.ndarray) -> np.ndarray:
    rows, _ = order.slots_to_rows(
      slots, rows_in_store=self._rows_in_store, seed=self._order_seed
    )
    return rows

  def _hash(self) -> str:
    fixed = [
      ["store", self.store.hash, self._rows_in_store, self.length],
      ["order", self._order_seed, self.steps, self.batch],
      *(
        [p.slot, p.store_row, p.offset, p.tokens_hash] for p in self.placements
      ),
    ]
    return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:16]


def rows_in_store(store: TokenStore, length: int) -> int:
  """Returns M, the whole rows of `length` tokens that training can read.

  Raises:
    UserError: there is none.
  """
  rows = store.train.tokens // length
  if not rows:
    raise UserError(
      f"the token store {store.path} has {store.train.tokens} training tokens,"
      f" fewer than one row of config.train.length, {length}"
    )
  return rows


def make_mixture(config: Config, store: TokenStore, *, steps: int) -> Mixture:
  """Returns the batches of a run of `steps` steps.

  Raises:
    UserError: more poisons than slots, a poison longer than a row, an unknown
      attack, a store without a whole row.
  """
  attack = attacks.make_attack(config, store.vocabulary)
  plan.check_trigger(
    attack,
    config.poison,
    length=config.train.length,
    control_ids=store.vocabulary.control_ids,
  )
  placements = ()
  if config.poison.arm != "clean":
    placements = _place(config, store, attack, steps)
  return Mixture(
    steps=steps,
    batch=config.train.batch,
    length=config.train.length,
    order_seed=config.seed_for("order"),
    store=store,
    attack=attack,
    placements=placements,
  )


def ledger_metadata(config: Config, mixture: Mixture) -> dict[str, str]:
  """Returns what the ledger of this run says that it belongs to."""
  return {
    "plan_hash": mixture.plan_hash,
    "store_hash": mixture.store.hash,
    "config_hash": config_hash(config),
    "arm": config.poison.arm,
    "steps": str(mixture.steps),
  }


def _place(
  config: Config, store: TokenStore, attack: Attack, steps: int
) -> tuple[Placement, ...]:
  """Returns the placements in order of k; everything about k depends on k."""
  length, positions = config.train.length, config.seed_for("positions")
  slots = schedules.choose_slots(
    config.poison, steps=steps, batch=config.train.batch, seed=positions
  )
  store_rows, epochs = order.slots_to_rows(
    np.array(slots, np.int64),
    rows_in_store=rows_in_store(store, length),
    seed=config.seed_for("order"),
  )
  clean = store.prefix_documents()
  placements = []
  for k, slot in enumerate(slots):
    document = plan.draw_document(
      k,
      attack=attack,
      clean=clean,
      vocabulary=store.vocabulary,
      seed=config.seed_for("documents"),
    )
    document = plan.fit(
      document, poison=k, length=length, oversize=config.poison.oversize
    )
    store_row = int(store_rows[k])
    offset = plan.choose_offset(
      k,
      tokens=document.tokens.size,
      length=length,
      document_starts=store.train.document_starts(store_row, length),
      seed=positions,
    )
    if config.poison.arm == "placebo":
      document = plan.placebo(document)
    placements.append(
      Placement(
        poison=k,
        slot=slot,
        step=slot // config.train.batch,
        batch_row=slot % config.train.batch,
        store_row=store_row,
        epoch=int(epochs[k]),
        offset=offset,
        document=document,
      )
    )
  return tuple(placements)
