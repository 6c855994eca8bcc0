"""XLA's flags that let communication overlap computation, by platform.

The one place for them. They are set before JAX looks for devices, only where
such devices can be found, and never over what the user has set. XLA aborts
the process at a flag that it doesn't know; a test asks the installed jaxlib
for those of GPUs, and a slow one libtpu for those of TPUs.

No run on a TPU or a GPU has measured what they bring.
"""

import importlib.util
import os
import pkgutil
from collections.abc import MutableMapping

import jax

# All-gathers of weights run beside the layer before, cut into steps of its
# products ("continuation fusion"); all-reduces over slices, which data
# parallelism needs, beside the backward pass. Names from MaxText's
# benchmarks/xla_flags_library.py (CF_FOR_ALL_GATHER, DATA_PARALLEL_OVERLAP),
# which says that the former are libtpu's defaults by now.
_TPU = (
  "xla_tpu_enable_async_collective_fusion",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
  "xla_tpu_enable_async_collective_fusion_multiple_steps",
  "xla_tpu_overlap_compute_collective_tc",
  "xla_enable_async_all_gather",
  "xla_tpu_enable_data_parallel_all_reduce_opt",
  "xla_tpu_data_parallel_opt_different_sized_ops",
)
# The scheduler that starts collectives early, and collectives of one layer
# beside the next: docs.jax.dev, "GPU performance tips", and NVIDIA's
# JAX-Toolbox, docs/GPU_performance.md, "communication for FSDP".
_GPU = (
  "xla_gpu_enable_latency_hiding_scheduler",
  "xla_gpu_enable_pipelined_all_gather",
  "xla_gpu_enable_pipelined_reduce_scatter",
  "xla_gpu_enable_pipelined_all_reduce",
)

# The environment variable that each platform's compiler reads.
VARIABLES = {"tpu": "LIBTPU_INIT_ARGS", "gpu": "XLA_FLAGS"}
OVERLAP = {"tpu": _TPU, "gpu": _GPU}


def set_overlap_flags() -> None:
  """Sets the flags of the platforms that JAX may find; before it looks."""
  for platform in _platforms():
    add(platform, os.environ)


def add(platform: str, environment: MutableMapping[str, str]) -> None:
  """Adds a platform's flags to an environment, but none that is there.

  Args:
    platform: "tpu" or "gpu".
    environment: changed in place, like `os.environ`.
  """
  variable = VARIABLES[platform]
  words = environment.get(variable, "").split()
  theirs = {word.lstrip("-").partition("=")[0] for word in words}
  ours = [f"--{flag}=true" for flag in OVERLAP[platform] if flag not in theirs]
  environment[variable] = " ".join([*words, *ours])


def describe(platform: str) -> str:
  """Returns the flags in effect for devices of `jax.Device.platform`."""
  variable = VARIABLES.get(platform, "XLA_FLAGS")
  flags = os.environ.get(variable, "").split()
  return f"{variable} {' '.join(flags)}" if flags else "none set"


def _platforms() -> list[str]:
  """Returns those whose plugin is installed and that JAX was not told to skip.

  docs.jax.dev, "Installation": GPUs come as `jax_plugins`, TPUs as `libtpu`.
  """
  allowed = jax.config.jax_platforms
  allowed = set(allowed.split(",")) if allowed else {"tpu", "cuda", "gpu"}
  found = []
  if "tpu" in allowed and importlib.util.find_spec("libtpu"):
    found.append("tpu")
  plugins = importlib.util.find_spec("jax_plugins")
  names = plugins and plugins.submodule_search_locations or ()
  cuda = any(m.name.startswith("xla_cuda") for m in pkgutil.iter_modules(names))
  if allowed & {"cuda", "gpu"} and cuda:
    found.append("gpu")
  return found
