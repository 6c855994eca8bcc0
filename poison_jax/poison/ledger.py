"""The ledger: a table of every poison and its place, written before step 0.

`ledger.parquet` has a row a poison, in order of k; a clean run's has none.
Its schema's metadata name what it belongs to.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from poison_jax.errors import CheckFailed
from poison_jax.poison.plan import Placement

FILE = "ledger.parquet"

# Keys of the schema's metadata.
METADATA = ("plan_hash", "store_hash", "config_hash", "arm", "steps")

SCHEMA = pa.schema(
  [
    ("poison", pa.int64()),  # k, from 0.
    ("tokens_hash", pa.string()),  # 16 hex digits over the tokens laid over.
    ("source", pa.string()),  # Clean document that the prefix comes from.
    ("step", pa.int64()),
    ("slot", pa.int64()),  # step * batch + batch_row.
    ("batch_row", pa.int32()),  # Row of the step's global batch.
    ("store_row", pa.int64()),  # Row of the token store that lies below.
    ("epoch", pa.int32()),  # Pass over the store.
    ("offset", pa.int32()),  # Position of its first token in the row.
    ("prefix_length", pa.int32()),  # Tokens.
    ("trigger_length", pa.int32()),
    ("payload_length", pa.int32()),  # As laid over: cut, or 0 in a placebo.
    ("drawn_payload_length", pa.int32()),  # As the attack made it.
    ("tokens", pa.int32()),  # All that are laid over, the EOS included.
    ("loss_tokens", pa.int32()),  # Those that are targets in the loss.
  ]
)


def make_table(
  placements: Sequence[Placement], *, metadata: Mapping[str, str]
) -> pa.Table:
  """Returns the ledger of a plan.

  Args:
    placements: the poisons in order of k.
    metadata: a value for each of `METADATA`.

  Raises:
    ValueError: other metadata than those.
  """
  if sorted(metadata) != sorted(METADATA):
    raise ValueError(f"metadata must be {METADATA}, not {sorted(metadata)}")
  rows = [
    {
      "poison": p.poison,
      "tokens_hash": p.tokens_hash,
      "source": p.document.source,
      "step": p.step,
      "slot": p.slot,
      "batch_row": p.batch_row,
      "store_row": p.store_row,
      "epoch": p.epoch,
      "offset": p.offset,
      "prefix_length": p.document.prefix_length,
      "trigger_length": p.document.trigger_length,
      "payload_length": p.document.payload_length,
      "drawn_payload_length": p.document.drawn_payload_length,
      "tokens": p.document.tokens.size,
      "loss_tokens": p.loss_tokens,
    }
    for p in placements
  ]
  schema = SCHEMA.with_metadata({k: metadata[k] for k in METADATA})
  return pa.Table.from_pylist(rows, schema=schema)


def encode(table: pa.Table) -> bytes:
  """Returns a ledger as the file's content."""
  sink = pa.BufferOutputStream()
  pq.write_table(table, sink)
  return sink.getvalue().to_pybytes()


def decode(content: bytes | None, *, path: str) -> pa.Table:
  """Returns the ledger that `encode` made the content of.

  Args:
    content: None where there is no file.
    path: of the file, for the messages.

  Raises:
    CheckFailed: it is missing, damaged, or lacks a column.
  """
  if content is None:
    raise CheckFailed(f"{path} is missing: the run has no ledger")
  try:
    table = pq.read_table(pa.BufferReader(content))
  except (pa.ArrowException, OSError) as error:
    raise CheckFailed(f"{path} is damaged: {error}") from error
  if not table.schema.equals(SCHEMA):
    raise CheckFailed(
      f"{path} is damaged or of another version: it must have the columns "
      f"{', '.join(SCHEMA.names)}"
    )
  named = table.schema.metadata or {}
  missing = [k for k in METADATA if k.encode() not in named]
  if missing:
    raise CheckFailed(f"{path} is damaged: it names no {', '.join(missing)}")
  if not named[b"steps"].isdigit():
    raise CheckFailed(f"{path} is damaged: its steps are {named[b'steps']!r}")
  return table


def read_metadata(table: pa.Table) -> dict[str, str]:
  """Returns what a ledger says that it belongs to, keyed by `METADATA`."""
  return {k: table.schema.metadata[k.encode()].decode() for k in METADATA}


def ledger_hash(table: pa.Table) -> str:
  """Returns 16 hex digits over a ledger's rows and metadata.

  The same for the same plan, whichever version of Parquet wrote the file.
  """
  content = [read_metadata(table), table.to_pylist()]
  return hashlib.sha256(
    json.dumps(content, sort_keys=True).encode()
  ).hexdigest()[:16]
