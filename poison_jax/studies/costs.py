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
# Of peak FLOP/s, at which splash attention is taken to run. Ours, not
# measured: XLA has no time for a kernel's arithmetic.
SPLASH_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Price:
  """Of a chip and hour, in US dollars."""

  chip_hour: float
  date: str
  source: str


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of a whole run, whatever its pace.

  Attributes:
    parameters: of the model.
    steps: of training.
    tokens_per_step: over all chips.
    flops: of a token, forward and backward.
    checkpoints: kept to the end.
    storage: their bytes.
  """

  parameters: int
  steps: int
  tokens_per_step: int
  flops: counts.FlopsPerToken
  checkpoints: int
  storage: int


@dataclasses.dataclass(frozen=True)
class Pace:
  """How fast a run is, and what that costs.

  Attributes:
    seconds: of a step.
    kernel: of these, by arithmetic, for kernels that XLA has no time for.
    mfu: model FLOPs over peak FLOPs in that time, 0 to 1.
    hours: all steps; without evaluations, saves and interruptions.
    dollars: `hours` on all chips.
  """

  seconds: float
  kernel: float
  mfu: float
  hours: float
  dollars: float


def run_costs(config: Config) -> Costs:
  """Returns the costs of a run that don't depend on where it runs."""
  size, t = config.vocabulary.size, config.train
  steps = counts.run_steps(config, size)
  parameters = counts.count_parameters(config.model, size).total
  kept = kept_checkpoints(config, steps=steps)
  return Costs(
    parameters=parameters,
    steps=steps,
    tokens_per_step=t.batch * t.length,
    flops=counts.flops_per_token(config.model, size, t.length),
    checkpoints=kept,
    storage=kept * parameters * CHECKPOINT_BYTES_PER_PARAMETER,
  )


def pace(
  costs: Costs,
  topology: Topology,
  price: Price,
  *,
  seconds: float,
  kernel: float = 0.0,
) -> Pace:
  """Returns the pace of a run whose steps take `seconds`, `kernel` included."""
  hours = seconds * costs.steps / 3600
  return Pace(
    seconds=seconds,
    kernel=kernel,
    mfu=_model_flops(costs) / (seconds * _peak(topology)),
    hours=hours,
    dollars=hours * topology.chips * price.chip_hour,
  )


def pace_at(
  costs: Costs, topology: Topology, price: Price, *, mfu: float
) -> Pace:
  """Returns the pace of a run that uses this share of the peak, 0 to 1."""
  seconds = _model_flops(costs) / (mfu * _peak(topology))
  return pace(costs, topology, price, seconds=seconds)


def splash_seconds(config: Config, topology: Topology) -> float:
  """Returns a step's time in splash attention, by arithmetic.

  In products of queries' by keys' size: two forward, three for the gradient of
  the queries and four for that of keys and values, since each pass makes the
  scores again; and two more where a rematerialised layer runs again. Model
  FLOPs have six.
  """
  products = 9 + (2 if config.model.remat != "none" else 0)
  flops = counts.flops_per_token(
    config.model, config.vocabulary.size, config.train.length
  ).attention
  tokens = config.train.batch * config.train.length
  return flops * tokens * products / 6 / (_peak(topology) * SPLASH_SHARE)


def _model_flops(costs: Costs) -> float:
  return costs.flops.total * costs.tokens_per_step


def _peak(topology: Topology) -> float:
  return topology.chips * topology.chip.peak_flops


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
    loss_pieces=1,
    steps=counts.run_steps(config, config.vocabulary.size),
  )
  model = dataclasses.replace(config.model, depth=depth, scan_layers=False)
  return dataclasses.replace(config, train=train, model=model)


def step_seconds(
  config: Config, timed: Callable[[Config], float | None]
) -> float | None:
  """Returns XLA's estimate of a step of the whole depth, seconds.

  The line through 2 and 4 layers, times the micro-batches; so the optimizer
  counts once a micro-batch, a little too often (13b on v5p:4x4x4: some 2 ms, by
  its memory traffic, against 1.4 s of products in 4 rows a chip). Logits that a
  loss in pieces makes again are not counted: 2 V D FLOPs a token.

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
