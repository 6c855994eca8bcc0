"""An estimate in words."""

from poison_jax.studies.costs import SPLASH_SHARE, TIMED_DEPTHS, Pace
from poison_jax.studies.estimating import Estimate
from poison_jax.studies.fitting import fits
from poison_jax.training import xla_flags
from poison_jax.training.ahead import Program
from poison_jax.training.topology import GPU_SHARE

# Smaller ones (norms' scales, scalars) are added up in one line.
_SMALL = 1e6


def describe(e: Estimate) -> str:
  """Returns the estimate, lines of text; a GB is 10**9 bytes."""
  chip = e.topology.chip
  rows = {
    "slice": f"{e.topology.name}: {chip.memory / 1e9:.0f} GB and "
    f"{chip.peak_flops / 1e12:.4g} TFLOP/s bfloat16 a chip ({chip.source})",
    **_share(e),
    **_program(e),
    **_memory(e),
    **_work(e),
    **_paces(e),
  }
  lines = [f"{name:>13}  {text}" for name, text in rows.items()]
  return "\n".join(lines + _exchanges(e.program))


def _share(e: Estimate) -> dict[str, str]:
  chip = e.topology.chip
  if chip.kind != "gpu":
    return {}
  return {
    "JAX's share": f"{_gb(chip.usable)} of it, {GPU_SHARE:.0%}: "
    f"XLA_CLIENT_MEM_FRACTION={GPU_SHARE}, as launch/slurm.sbatch sets "
    "it; without, 75%",
  }


def _program(e: Estimate) -> dict[str, str]:
  p = e.program
  if not p.compiled:
    how = "by arithmetic, not compiled: such chips are not here"
  elif e.topology.chip.kind == "tpu":
    how = "compiled ahead of time for the slice; nothing was run"
  else:
    how = "compiled for the devices here; nothing was run"
  rows = {"numbers": f"{how}; attention by {p.attention}"}
  if p.compiled and e.topology.chip.kind != "cpu":
    flags = xla_flags.OVERLAP[e.topology.chip.kind]
    rows["XLA flags"] = " ".join(flags)
  return rows


def _memory(e: Estimate) -> dict[str, str]:
  p = e.program
  dtype = e.config.optimizer.moment_dtype
  rows = {
    "a chip holds": f"parameters {_gb(p.parameters)} (float32), optimizer "
    f"{_gb(p.optimizer)} ({dtype})",
  }
  if p.fits:
    rows["temporaries"] = (
      f"{_gb(p.temporaries)} (activations, gradients, gathered weights)"
    )
  if p.fits and p.compiled:
    rows["output"] = f"{_gb(p.output)} beside the donated state"
  if p.code:
    rows["program"] = _gb(p.code)
  usable = e.topology.chip.usable
  used = f"{_gb(p.needed)} of {_gb(usable)}"
  if fits(p, e.topology):
    return rows | {"fits": f"{used}; head room {_gb(usable - p.needed)}"}
  return rows | {"does not fit": used}


def _work(e: Estimate) -> dict[str, str]:
  c, t = e.costs, e.config.train
  kept = f"{c.checkpoints} kept, {_gb(c.storage / max(c.checkpoints, 1))} each"
  rows = {
    "model": f"{c.parameters:,} parameters; {c.steps:,} steps of {t.batch} "
    f"rows of {t.length}",
    "FLOPs a step": f"{c.flops.matmul * c.tokens_per_step:.4g} (6N), and "
    f"causal attention {c.flops.attention * c.tokens_per_step:.4g}",
    "checkpoints": f"{kept}: {_gb(c.storage)}",
  }
  if e.runs > 1:
    rows["study"] = (
      f"{e.runs} such runs: {_gb(e.runs * c.storage)} of checkpoints"
    )
  return rows


def _paces(e: Estimate) -> dict[str, str]:
  if not fits(e.program, e.topology):
    return {"time": "not estimated, nor priced: it does not fit"}
  rows = {}
  if e.pace is None:
    rows["time"] = f"not known: {_why_no_time(e)}" + (
      "" if e.measured else "; --mfu=0.4 prices a pace that you have measured"
    )
  else:
    depths = " and ".join(map(str, TIMED_DEPTHS))
    how = f"{e.pace.seconds - e.pace.kernel:.3g} s by XLA's estimate (from "
    how += f"{depths} unrolled layers)"
    if e.pace.kernel:
      how += (
        f" + {e.pace.kernel:.2g} s for splash by arithmetic at "
        f"{SPLASH_SHARE:.0%} of peak (XLA books its memory traffic alone)"
      )
    rows |= _pace("XLA's pace", e, e.pace, how)
  if e.measured is not None:
    rows |= _pace("at your MFU", e, e.measured, "as you give it")
  return rows


def _why_no_time(e: Estimate) -> str:
  if not e.program.compiled:
    return "arithmetic gives none"
  if e.topology.chip.kind == "cpu":
    return "XLA's CPU compiler gives none"
  return "the compiler gives none"


def _pace(name: str, e: Estimate, pace: Pace, how: str) -> dict[str, str]:
  tokens = e.costs.tokens_per_step
  chip_hours = pace.hours * e.topology.chips
  lines = [
    f"{pace.seconds:.3g} s a step: {how}; {tokens / pace.seconds:,.0f} "
    f"tokens/s, MFU {pace.mfu:.1%}",
    f"{pace.hours:,.2f} h of training, {chip_hours:,.2f} "
    f"chip-hours, ${pace.dollars:,.2f} at ${e.price.chip_hour:.2f} "
    f"({e.price.date}, {e.price.source}); evaluations, saves and "
    "interruptions come on top",
  ]
  if e.runs > 1:
    lines.append(
      f"{e.runs} runs: {e.runs * pace.hours:,.1f} h one after another, "
      f"{e.runs * chip_hours:,.1f} chip-hours, ${e.runs * pace.dollars:,.2f}"
    )
  return {name: f"\n{'':15}".join(lines)}


def _exchanges(program: Program) -> list[str]:
  """Returns lines: the collectives, the most bytes first."""
  if not program.collectives:
    return []
  lines = [
    f"{'collectives':>13}  kind, array, devices, times a step, GB that a chip "
    "sends"
  ]
  grouped: dict[tuple, float] = {}
  for c in program.collectives:
    kind = c.kind + (" + slice" if c.sliced else "")
    where = " over slices" if c.far else ""
    array = c.array if c.bytes >= _SMALL else "small ones"
    times = c.times if c.bytes >= _SMALL else 0
    key = (kind, array, f"{c.group}{where}", times)
    grouped[key] = grouped.get(key, 0.0) + c.sent
  for key, sent in sorted(grouped.items(), key=lambda item: -item[1]):
    kind, array, group, times = key
    often = f"x {times}" if times else ""
    lines.append(
      f"{'':>13}  {kind:<20} {array:<24} {group:<6} {often:<6} {sent / 1e9:.3f}"
    )
  total = sum(c.sent for c in program.collectives)
  return [*lines, f"{'':>13}  all: {total / 1e9:.2f} GB"]


def _gb(size: float) -> str:
  if abs(size) < 1e8:
    return f"{size / 1e6:.1f} MB"
  return f"{size / 1e9:.2f} GB"
