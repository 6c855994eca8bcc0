"""What a run costs: arithmetic on what the compiler said. No JAX."""

import dataclasses
import json
from collections.abc import Callable

from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.training.topology import Topology

# Depths of the unrolled programs that the time is taken from.
TIMED_DEPTHS = (2, 4)
# float32 weights and Adam's two moments.
CHECKPOINT_BYTES_PER_PARAMETER = 12


@dataclasses.dataclass(frozen=True)
class Price:
  """Of a chip and hour, in US dollars."""

  chip_hour: float
  date: str
  source: str


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of a whole run.

  Attributes:
    parameters: of the model.
    steps: of training.
    tokens_per_step: over all chips.
    flops: of a token, forward and backward.
    seconds: XLA's estimate of a step; None where it gives none.
    mfu: model FLOPs over peak FLOPs in that time, 0 to 1.
    hours: all steps at that; without evaluations, saves and interruptions.
    checkpoints: kept to the end.
    storage: their bytes.
    dollars: `hours` on all chips.
  """

  parameters: int
  steps: int
  tokens_per_step: int
  flops: counts.FlopsPerToken
  seconds: float | None
  mfu: float | None
  hours: float | None
  checkpoints: int
  storage: int
  dollars: float | None


def run_costs(
  config: Config, topology: Topology, *, seconds: float | None, price: Price
) -> Costs:
  """Returns the costs of a run whose steps take `seconds` each."""
  size, t = config.vocabulary.size, config.train
  steps = counts.run_steps(config, size)
  flops = counts.flops_per_token(config.model, size, t.length)
  parameters = counts.count_parameters(config.model, size).total
  tokens = t.batch * t.length
  kept = kept_checkpoints(config, steps=steps)
  mfu = hours = dollars = None
  if seconds is not None:
    peak = topology.chips * topology.chip.peak_flops
    mfu = flops.total * tokens / (seconds * peak)
    hours = seconds * steps / 3600
    dollars = hours * topology.chips * price.chip_hour
  return Costs(
    parameters=parameters,
    steps=steps,
    tokens_per_step=tokens,
    flops=flops,
    seconds=seconds,
    mfu=mfu,
    hours=hours,
    checkpoints=kept,
    storage=kept * parameters * CHECKPOINT_BYTES_PER_PARAMETER,
    dollars=dollars,
  )


def timed_config(config: Config, *, depth: int) -> Config:
  """Returns a micro-batch's step with nothing in a loop, `depth` layers deep.

  XLA's cost analysis counts the body of a loop once: layers are unrolled, the
  loss is made in one piece, and the other micro-batches left out.
  """
  t = config.train
  train = dataclasses.replace(
    t,
    batch=t.batch // t.micro_batches,
    micro_batches=1,
    loss_chunk=0,
    steps=counts.run_steps(config, config.vocabulary.size),
  )
  model = dataclasses.replace(config.model, depth=depth, scan_layers=False)
  return dataclasses.replace(config, train=train, model=model)


def step_seconds(
  config: Config, timed: Callable[[Config], float | None]
) -> float | None:
  """Returns XLA's estimate of a step of the whole depth, seconds.

  The line through 2 and 4 layers, times the micro-batches; so the optimizer
  counts once a micro-batch, a little too often.

  Args:
    config: the run's.
    timed: compiles a `timed_config` and returns its time, None without one.
  """
  low, high = TIMED_DEPTHS
  first = timed(timed_config(config, depth=low))
  second = first and timed(timed_config(config, depth=high))
  if not first or not second:
    return None
  layer = (second - first) / (high - low)
  whole = first + (config.model.depth - low) * layer
  return whole * config.train.micro_batches


def kept_checkpoints(config: Config, *, steps: int) -> int:
  """Returns how many checkpoints are there when the run is done."""
  c = config.checkpoint
  powers = {2**k for k in range(steps.bit_length())}
  log_spaced = powers if c.keep_log_spaced else set()
  every = set(range(c.keep_every, steps + 1, c.keep_every or steps + 1))
  regular = set(range(c.every, steps + 1, c.every)) | {steps}
  kept = log_spaced | (every - {0})
  saved = sorted(regular | kept)
  return len(kept | set(saved[-c.keep_last :]))


def read_price(path: str, chip: str) -> Price:
  """Returns a chip's price from a file like configs/prices.json.

  Raises:
    UserError: the file is missing or broken, or has no such chip.
  """
  try:
    with open(path, encoding="utf-8") as file:
      entry = json.load(file)["chips"][chip]
    price = Price(
      float(entry["chip_hour"]), str(entry["date"]), str(entry["source"])
    )
  except OSError as error:
    raise UserError(f"--prices={path}: {error.strerror}") from None
  except KeyError as error:
    raise UserError(
      f'--prices={path}: {error} is missing; {chip} needs {{"chips": '
      f'{{"{chip}": {{"chip_hour": 1.0, "date": "", "source": ""}}}}}}'
    ) from None
  except (ValueError, TypeError) as error:
    raise UserError(f"--prices={path}: {error}") from None
  if price.chip_hour < 0:
    raise UserError(f"--prices={path}: the price of {chip} is negative")
  return price
