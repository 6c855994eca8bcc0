"""An estimate of one run on one slice: compiled, computed, printed."""

from collections.abc import Callable

from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.studies import costs, fitting
from poison_jax.studies.estimate_text import describe
from poison_jax.training.topology import Topology


def check_vocabulary(config: Config) -> None:
  """Raises UserError where the config doesn't give the vocabulary's size."""
  v = config.vocabulary
  if v.kind != "sentencepiece" or v.file:
    raise UserError(
      "estimate needs the vocabulary's size: give "
      "--config.vocabulary.kind=sentencepiece --config.vocabulary.file= and "
      "--config.vocabulary.size=PIECES of yours"
    )


def estimate(
  config: Config,
  topology: Topology,
  price: costs.Price,
  *,
  compile_: fitting.Compile,
  say: Callable[[str], None],
) -> None:
  """Compiles, computes and prints; what it does goes to `say`.

  Raises:
    UserError: it doesn't fit; with the smallest change that does.
  """
  say(f"compiling the step of {config.model.depth} layers for {topology.name}")
  program = compile_(config, topology)
  fits = fitting.fits(program, topology)
  seconds = _seconds(config, topology, compile_, say) if fits else None
  found = costs.run_costs(config, topology, seconds=seconds, price=price)
  print(describe(config, topology, program, found, price), flush=True)
  if fits:
    return
  change = fitting.smallest_change(config, topology, compile_, say=say)
  if change is None:
    raise UserError(
      f"it does not fit {topology.name}, nor any larger slice of "
      f"{topology.chip.name} that was tried: cut the model further "
      "(--config.runtime.mesh.fsdp=-1 --config.runtime.mesh.data=1)"
    )
  raise UserError(
    f"it does not fit {topology.name}; the smallest change that does: "
    f"{change.words}"
  )


def _seconds(config, topology, compile_, say) -> float | None:
  def timed(shallow: Config) -> float | None:
    say(f"compiling {shallow.model.depth} unrolled layers for the time")
    return compile_(shallow, topology).seconds

  return costs.step_seconds(config, timed)
