"""Does a run's ledger say what the run trains on?

The plan is worked out again and compared with the ledger field by field; the
batches that carry poisons are read again and compared, token by token, with
the hashes in the ledger and with the clean rows of the store; what the device
counted is compared with what the ledger adds up to. The store is known by the
hash in its manifest; that its tokens still have it is checked by
`TokenStore.verify_contents`, which reads all of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from poison_jax.data.mixture import Batch, Mixture
from poison_jax.errors import CheckFailed
from poison_jax.poison import ledger
from poison_jax.poison.plan import hash_tokens


@dataclasses.dataclass(frozen=True)
class Counted:
  """What a checkpoint says: poisons and their tokens in the steps before."""

  poisons: int
  tokens: int


@dataclasses.dataclass(frozen=True)
class Verified:
  """How much was compared, and agreed.

  Attributes:
    poisons: rows of the ledger.
    fields: values compared with the plan made again.
    batches: batches that carry poisons, read again.
    poison_tokens: their tokens that lie in poisons.
    clean_tokens: their other tokens, equal to the store's.
    checkpoints: whose counters were compared.
  """

  poisons: int
  fields: int
  batches: int
  poison_tokens: int
  clean_tokens: int
  checkpoints: int


def verify(
  table: pa.Table,
  mixture: Mixture,
  *,
  metadata: Mapping[str, str],
  counted: Mapping[int, Counted],
) -> Verified:
  """Compares a ledger with the plan, the batches and the counters.

  Args:
    table: the ledger that the run wrote before step 0.
    mixture: made again from the run's config and the token store.
    metadata: what the ledger ought to belong to.
    counted: by step, what each checkpoint counted in the steps before.

  Raises:
    CheckFailed: something disagrees; names the first thing that does.
  """
  _compare("metadata", ledger.read_metadata(table), metadata)
  expected = ledger.make_table(mixture.placements, metadata=metadata)
  if table.num_rows != expected.num_rows:
    raise CheckFailed(
      f"the ledger has {table.num_rows} poisons, the plan {expected.num_rows}"
    )
  rows = table.to_pylist()
  for found, planned in zip(rows, expected.to_pylist(), strict=True):
    _compare(f"poison {planned['poison']}", found, planned)
  poison_tokens, clean_tokens = _read_again(rows, mixture)
  for step, numbers in sorted(counted.items()):
    _compare_counters(rows, step, numbers)
  return Verified(
    poisons=len(rows),
    fields=len(rows) * len(table.schema) + len(metadata),
    batches=len({row["step"] for row in rows}),
    poison_tokens=poison_tokens,
    clean_tokens=clean_tokens,
    checkpoints=len(counted),
  )


def _compare(
  what: str, found: Mapping[str, Any], planned: Mapping[str, Any]
) -> None:
  for name, value in planned.items():
    if found[name] != value:
      raise CheckFailed(
        f"{what}: {name} is {found[name]!r} in the ledger, {value!r} in the "
        "plan made again"
      )


def _read_again(
  rows: list[dict[str, Any]], mixture: Mixture
) -> tuple[int, int]:
  """Returns how many tokens in and around poisons were found as they ought."""
  by_step: dict[int, list[dict[str, Any]]] = {}
  for row in rows:
    by_step.setdefault(row["step"], []).append(row)
  in_poisons = around = 0
  for step, poisons in sorted(by_step.items()):
    batch = mixture.batch_rows(step, slice(None))
    # Read apart from the order and the overlay that made the batch.
    clean_PL = mixture.store.train.rows(
      np.array([row["store_row"] for row in poisons]), mixture.length
    )
    for row, clean_L in zip(poisons, clean_PL, strict=True):
      where = f"poison {row['poison']} (step {step}, row {row['batch_row']})"
      span = slice(row["offset"], row["offset"] + row["tokens"])
      tokens_L = batch.tokens_BL[row["batch_row"]]
      if hash_tokens(tokens_L[span]) != row["tokens_hash"]:
        raise CheckFailed(
          f"{where}: the batch's tokens have hash "
          f"{hash_tokens(tokens_L[span])}, the ledger says {row['tokens_hash']}"
        )
      different = np.flatnonzero(tokens_L != clean_L)
      outside = (different < span.start) | (different >= span.stop)
      if outside.any():
        raise CheckFailed(
          f"{where}: token {different[outside][0]} outside the poison is not "
          f"the one of store row {row['store_row']}"
        )
      in_poisons += row["tokens"]
      around += mixture.length - row["tokens"]
    _compare_spans(step, batch, poisons)
  return in_poisons, around


def _compare_spans(
  step: int, batch: Batch, poisons: list[dict[str, Any]]
) -> None:
  """Compares what the device counts by, rows without a poison included."""
  expected = {
    row["batch_row"]: (row["offset"], row["tokens"]) for row in poisons
  }
  spans = zip(
    batch.poison_start_B.tolist(), batch.poison_length_B.tolist(), strict=True
  )
  for row, span in enumerate(spans):
    if span != expected.get(row, (0, 0)):
      raise CheckFailed(
        f"step {step}, row {row}: the batch says (start, length) of a poison "
        f"are {span}, but they lie at {expected.get(row, (0, 0))}"
      )


def _compare_counters(
  rows: list[dict[str, Any]], step: int, numbers: Counted
) -> None:
  """Adds the ledger up by itself, apart from the plan's own sums."""
  before = [row for row in rows if row["step"] < step]
  tokens = sum(row["loss_tokens"] for row in before)
  if numbers.poisons != len(before):
    raise CheckFailed(
      f"checkpoint of step {step}: {numbers.poisons} poisons seen, the ledger "
      f"has {len(before)} before it"
    )
  # The device counts in 32 bits.
  if numbers.tokens != tokens % 2**32:
    raise CheckFailed(
      f"checkpoint of step {step}: the device counted {numbers.tokens} poison "
      f"tokens in the loss, the ledger has {tokens} before it"
    )
