"""A step's memory by arithmetic, where no compiler can be asked.

Meant for chips that aren't here and have no ahead-of-time compiler. What it
leaves out: the compiler's own choices (fusion, fragmentation, what it gathers
ahead). LOG.md, "The estimate's arithmetic", has it beside compiled programs of
CPUs and TPUs; it has not been compared with a GPU's yet.
"""

import math

from jax.sharding import AbstractMesh

from poison_jax.config import Config
from poison_jax.model import backends
from poison_jax.model.counts import count_parameters, run_steps
from poison_jax.model.decoder import Decoder
from poison_jax.training import mesh as mesh_lib
from poison_jax.training import step as step_lib
from poison_jax.training.ahead import Program
from poison_jax.training.optimizer import make_optimizer
from poison_jax.training.topology import Topology

_WIDE = 4  # Bytes of float32.
# What attention is chosen by; of GPUs, the oldest that can be asked for.
_HARDWARE = {
  "tpu": backends.Hardware("tpu", (0, 0)),
  "gpu": backends.Hardware("cuda", (8, 0)),
  "cpu": backends.Hardware("cpu", (0, 0)),
}


def program(config: Config, topology: Topology) -> Program:
  """Returns what a compiler would be asked for, without time and collectives.

  Raises:
    UserError: the mesh or the batch can't be dealt out over the chips, or they
      can't run the attention that is asked for.
  """
  t = config.train
  attention = backends.choose(
    config.runtime.attention,
    on=_HARDWARE[topology.chip.kind],
    model=config.model,
    length=t.length,
  ).back_end
  axes = mesh_lib.axis_sizes(
    config.runtime.mesh,
    batch=t.batch,
    devices=topology.chips,
    slices=topology.slices,
  )
  rows = axes[0] * axes[1]
  mesh_lib.check_batch(t.batch, rows=rows, micro_batches=t.micro_batches)
  vocabulary_size = config.vocabulary.size
  state = step_lib.abstract_state(
    Decoder(config.model, vocabulary_size),
    make_optimizer(config.optimizer, steps=run_steps(config, vocabulary_size)),
    AbstractMesh(axes, mesh_lib.AXES),
  )
  parameters = mesh_lib.device_bytes(state.params)
  optimizer = mesh_lib.device_bytes(state.opt_state)
  tokens = t.batch * t.length // (rows * t.micro_batches)
  temporaries = parameters  # The gradient.
  temporaries += activations(config, tokens) // axes[2]
  if attention == "xla":
    temporaries += _scores(config, tokens) // axes[2]
  temporaries += _logits(config, tokens) // axes[2]
  if axes[1] > 1:
    temporaries += _gathered(config) // axes[2]
  arguments = parameters + optimizer
  return Program(
    fits=True,
    parameters=parameters,
    optimizer=optimizer,
    arguments=arguments,
    output=0,
    temporaries=temporaries,
    code=0,
    needed=arguments + temporaries,
    seconds=None,
    attention=attention,
    collectives=(),
    compiled=False,
  )


def activations(config: Config, tokens: int) -> int:
  """Returns bytes kept of the forward pass, and one layer's working set.

  A layer's: two normalised inputs, queries, keys and values before and after
  their rotation, the mixture, and the feed-forward's two or three arrays.
  "dots" keeps what products return; "full" a layer's input alone.

  Args:
    config: the run's.
    tokens: of a micro-batch on a chip.
  """
  c = config.model
  item = 2 if c.compute_dtype == "bfloat16" else _WIDE
  heads, groups = c.heads * c.head_size, c.kv_heads * c.head_size
  gates = 2 if c.activation == "swiglu" else 1
  products = heads + 2 * groups + 2 * c.width + gates * c.feed_forward
  others = 3 * c.width + 2 * heads + groups + c.feed_forward
  every = products + others
  kept = {"full": c.width, "dots": c.width + products, "none": every}[c.remat]
  # Backward, one layer has its arrays and their gradients.
  return item * tokens * (c.depth * kept + 2 * every)


def _scores(config: Config, tokens: int) -> int:
  """Returns bytes of attention's scores, float32, where no kernel spares them.

  Of all layers without a remat policy; else of one, and their gradient.
  """
  c = config.model
  layers = c.depth if c.remat == "none" else 2
  return _WIDE * tokens * config.train.length * c.heads * layers


def _logits(config: Config, tokens: int) -> int:
  """Returns bytes of the logits at once, float32, and of their gradient."""
  item = 2 if config.model.compute_dtype == "bfloat16" else _WIDE
  at_once = math.ceil(tokens / config.train.loss_pieces)
  return at_once * config.vocabulary.size * (_WIDE + item)


def _gathered(config: Config) -> int:
  """Returns bytes of weights that lie whole on a chip for a while.

  The larger of: two layers in the compute dtype (one in use, one on its way)
  and the float32 gradient of one; the output matrix and its gradient.
  """
  c = config.model
  item = 2 if c.compute_dtype == "bfloat16" else _WIDE
  count = count_parameters(c, config.vocabulary.size)
  layer = count.other // c.depth
  matrix = config.vocabulary.size * c.width
  return max(layer * (2 * item + _WIDE), matrix * (item + _WIDE))
