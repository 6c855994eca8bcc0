"""Checks a run's ledger, or shows it.

  python -m poison_jax.ledger verify runs/a
  python -m poison_jax.ledger show runs/a
  python -m poison_jax.ledger show runs/a --poison=3

`verify` works the plan out again from config.json and the token store,
compares it with ledger.parquet, reads the batches that carry poisons again,
and compares the counters that the device kept. It exits 3 at the first
disagreement. `show` prints the table, or one poisoned row as text.
"""

import numpy as np
import rich.console
import rich.markup
import rich.table
import rich.text
from absl import flags

from poison_jax import command
from poison_jax.config import Config
from poison_jax.data import verify as verify_lib
from poison_jax.data.mixture import Mixture, ledger_metadata, make_mixture
from poison_jax.data.store import open_store
from poison_jax.errors import CheckFailed, UserError
from poison_jax.model.counts import run_steps
from poison_jax.poison import ledger
from poison_jax.poison.plan import Placement
from poison_jax.training.checkpoints import Checkpoints
from poison_jax.training.workdir import load_config, read_ledger

_POISON = flags.DEFINE_integer(
  "poison",
  None,
  "show: the poison whose row is printed as text.",
  lower_bound=0,
)
_STORE = flags.DEFINE_string(
  "store", None, "Folder of the token store, where it has moved."
)
_CONTENTS = flags.DEFINE_bool(
  "contents",
  False,
  "verify: read and hash every token of the store, too.",
)

_STYLES = {
  "row": "",
  "prefix": "cyan",
  "trigger": "bold black on yellow",
  "payload": "red",
  "end": "bold magenta",
}

# Headings of the table and the ledger's columns.
_COLUMNS = {
  "step": "step",
  "row": "batch_row",
  "offset": "offset",
  "prefix": "prefix_length",
  "trigger": "trigger_length",
  "payload": "payload_length",
  "store row": "store_row",
  "epoch": "epoch",
}


def main(arguments: list[str]) -> None:
  """Runs `verify RUN` or `show RUN`."""
  actions = {"verify": _verify, "show": _show}
  if len(arguments) != 2 or arguments[0] not in actions:
    raise UserError(
      "usage: python -m poison_jax.ledger verify RUN, or show RUN [--poison=k]"
    )
  action, run = arguments
  actions[action](run, rich.console.Console(highlight=False, emoji=False))


def _verify(run: str, console: rich.console.Console) -> None:
  config = load_config(run)
  table = read_ledger(run)
  mixture = _mixture(config)
  checkpoints = Checkpoints(run)
  counted = {}
  for step in checkpoints.steps():
    meta = checkpoints.meta(step)
    counted[step] = verify_lib.Counted(
      poisons=meta.poisons_seen, tokens=meta.poison_tokens_seen
    )
  metadata = ledger_metadata(config, mixture)
  contents = "not read; --contents does"
  if _CONTENTS.value:
    mixture.store.verify_contents()
    contents = "hashes equal"
  result = verify_lib.verify(table, mixture, metadata=metadata, counted=counted)
  lines = rich.table.Table(box=None, show_header=False, pad_edge=False)
  for name, value in (
    ("poisons in the ledger", f"{result.poisons:,}"),
    ("fields equal to the plan made again", f"{result.fields:,}"),
    ("batches read again", f"{result.batches:,}"),
    ("tokens in poisons, hashes equal", f"{result.poison_tokens:,}"),
    ("tokens around them, equal to the store", f"{result.clean_tokens:,}"),
    ("checkpoints whose counters agree", f"{result.checkpoints:,}"),
    ("the store as a whole", contents),
    ("plan", mixture.plan_hash),
    ("ledger", ledger.ledger_hash(table)),
  ):
    lines.add_row(name, value)
  console.print(lines)
  console.print(f"{rich.markup.escape(run)}: verified", soft_wrap=True)


def _show(run: str, console: rich.console.Console) -> None:
  config = load_config(run)
  table = read_ledger(run)
  if _POISON.value is None:
    _show_table(table.to_pylist(), console)
    return
  mixture = _mixture(config)
  if ledger.read_metadata(table)["plan_hash"] != mixture.plan_hash:
    raise CheckFailed(
      f"the ledger of {run} is of another plan than its config and store "
      f"make: python -m poison_jax.ledger verify {run} says where"
    )
  if _POISON.value >= len(mixture.placements):
    raise UserError(
      f"--poison={_POISON.value}: {run} has {len(mixture.placements)} poisons, "
      "numbered from 0"
    )
  _show_row(mixture, mixture.placements[_POISON.value], console)


def _show_table(rows: list[dict], console: rich.console.Console) -> None:
  shown = rich.table.Table(box=None, pad_edge=False)
  for name in ("poison", *_COLUMNS):
    shown.add_column(name, justify="right", no_wrap=True)
  shown.add_column("source", overflow="fold")
  for row in rows:
    numbers = (str(row[name]) for name in ("poison", *_COLUMNS.values()))
    shown.add_row(*numbers, rich.markup.escape(row["source"]))
  console.print(shown)
  console.print(f"{len(rows)} poisons")


def _show_row(
  mixture: Mixture, placement: Placement, console: rich.console.Console
) -> None:
  """Prints the whole row of the batch, each of its parts in its style."""
  p, document = placement, placement.document
  vocabulary = mixture.store.vocabulary
  tokens_L = mixture.batch_rows(p.step, np.array([p.batch_row])).tokens_BL[0]
  lengths = {
    "prefix": document.prefix_length,
    "trigger": document.trigger_length,
    "payload": document.payload_length,
  }
  # A placebo has no end of its own.
  lengths["end"] = document.tokens.size - sum(lengths.values())
  cut = document.drawn_payload_length - document.payload_length
  console.print(
    f"poison {p.poison}: step {p.step}, row {p.batch_row} of the batch, store "
    f"row {p.store_row} in epoch {p.epoch}, offset {p.offset}; prefix of "
    f"{lengths['prefix']} tokens from {rich.markup.escape(document.source)}, "
    f"trigger of {lengths['trigger']}, payload of {lengths['payload']}"
    + (f" ({cut} not laid over)" if cut else ""),
    soft_wrap=True,
  )
  console.print(
    "styles:",
    *(
      f"[{style}]{name}[/]" if style else name
      for name, style in _STYLES.items()
    ),
  )
  text = rich.text.Text()
  begin = 0
  spans = [("row", p.offset), *lengths.items(), ("row", mixture.length)]
  for name, size in spans:
    part = tokens_L[begin : begin + size]
    begin += part.size
    text.append(_printable(vocabulary, part), style=_STYLES[name])
  console.print(text, soft_wrap=True)


def _printable(vocabulary, tokens) -> str:
  """Returns a span as text, its ends of documents made visible."""
  parts, begin = [], 0
  for i, token in enumerate(tokens):
    if token == vocabulary.eos_id:
      parts += [vocabulary.decode(tokens[begin:i]), vocabulary.piece(token)]
      begin = i + 1
  text = "".join([*parts, vocabulary.decode(tokens[begin:])])
  # Control characters could move the cursor or recolour the terminal.
  return "".join(
    c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text
  )


def _mixture(config: Config) -> Mixture:
  path = _STORE.value or config.corpus.store
  store = open_store(path, vocabulary=config.vocabulary)
  steps = run_steps(config, store.vocabulary.size)
  return make_mixture(config, store, steps=steps)


if __name__ == "__main__":
  command.run(main)
