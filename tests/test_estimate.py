"""The estimate: closed forms, refusals, the search for a change that fits."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
import tpu_compiler
from small_model import change, make_config

from configs import dos
from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.studies import arithmetic, costs, estimating, fitting
from poison_jax.studies.estimate_text import describe
from poison_jax.training import ahead, compiler
from poison_jax.training.ahead import Program
from poison_jax.training.topology import CHIPS, parse_topology

_V5P = parse_topology("v5p:4x4x4")
_PRICE = costs.Price(2.0, "2026-01-01", "made up")


def _config(**train):
  return change(make_config(), "train", **train)


def _say(line: str) -> None:
  print(line, file=sys.stderr)


def _program(needed: float, *, fits=True, seconds=None) -> Program:
  numbers = (1, 2, 3, 0, 4, 5, int(needed))
  return Program(fits, *numbers, seconds, "xla", (), compiled=True)


def test_a_topology_has_its_chips_and_the_larger_slices():
  assert (_V5P.name, _V5P.chips) == ("v5p:4x4x4", 64)
  larger = [t.name for t in parse_topology("v5e:8x8").larger()]
  assert larger == ["v5e:8x16", "v5e:16x16"]


def test_peaks_agree_with_the_table_that_training_uses():
  for chip in CHIPS.values():
    maker = {"tpu": "TPU ", "gpu": "NVIDIA ", "cpu": ""}[chip.kind]
    name = chip.name.upper() if chip.kind == "gpu" else chip.name
    known = counts.peak_flops(maker + name)
    assert known == (None if chip.kind == "cpu" else chip.peak_flops)
    assert chip.source and chip.memory >= 8e9
    chips = [parse_topology(f"{chip.name}:{s}").chips for s in chip.shapes]
    assert chips == sorted(chips)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("v5p", "like v5p:4x4x4"),
    ("v5p-128", "; v5p-128 is v5p:4x4x4$"),
    ("v5litepod-16", "; v5litepod-16 is v5e:4x4$"),
    ("v5p-127", "the chips are .*cpu$"),
    ("v5q:2x2", "did you mean 'v5"),
    ("v5p:3x3x3", "shapes of v5p are 2x2x1"),
    ("v5e:4x4x4", "shapes of v5e are 1x1"),
    ("v5e:4x4*0", "one slice or more"),
    ("h100:4x4", "must be a number, like h100:8"),
    ("h100:8*2", "must be a number, like h100:8"),
    ("cpu:0", "must be a number, like cpu:8"),
  ],
)
def test_a_topology_that_does_not_exist_is_refused(text, says):
  with pytest.raises(UserError, match=says):
    parse_topology(text)


@pytest.mark.parametrize(
  ("text", "rings", "chips"),
  [
    ("v5p:4x4x4", [True, True, True], 64),
    ("v5p:2x4x4", [False, False, False], 32),
    ("v5e:16x16", [True, True, False], 256),
    ("v6e:8x16", [False, True, False], 128),
    ("v5e:8x8*4", [False, False, False], 256),
  ],
)
def test_the_compiler_is_told_which_axes_are_rings(text, rings, chips):
  topology = parse_topology(text)
  assert topology.description()["wrap"] == rings
  assert topology.name == text and topology.chips == chips


def test_the_costs_are_the_closed_forms():
  config = _config(steps=1800, batch=8, length=16)
  found = costs.run_costs(config)
  size = config.vocabulary.size
  flops = counts.flops_per_token(config.model, size, 16).total * 8 * 16
  parameters = counts.count_parameters(config.model, size).total
  assert found.checkpoints == 2
  assert found.storage == 2 * 12 * parameters
  pace = costs.pace(found, _V5P, _PRICE, seconds=2.0)
  assert pace.hours == pytest.approx(1.0)
  assert pace.dollars == pytest.approx(64 * 2.0)
  assert pace.mfu == pytest.approx(flops / (2.0 * 64 * 459e12))
  measured = costs.pace_at(found, _V5P, _PRICE, mfu=pace.mfu / 2)
  assert measured.seconds == pytest.approx(4.0)
  assert measured.dollars == pytest.approx(2 * 64 * 2.0)


def test_splash_by_arithmetic_is_eleven_products_of_causal_scores():
  config = change(_config(batch=64, length=2048), "model", remat="full")
  m = config.model
  pairs = 64 * 2048 * 2049 / 2  # Of a query and a key not after it.
  product = 2 * pairs * m.heads * m.head_size * m.depth
  seconds = 11 * product / (64 * 459e12 * costs.SPLASH_SHARE)
  assert costs.splash_seconds(config, _V5P) == pytest.approx(seconds, rel=1e-6)
  without = change(config, "model", remat="none")
  assert costs.splash_seconds(without, _V5P) == pytest.approx(seconds * 9 / 11)


@pytest.mark.parametrize(
  ("fields", "kept"),
  [
    (dict(every=500, keep_last=2), 2),
    (dict(every=1000, keep_last=5), 1),
    (dict(every=500, keep_last=1, keep_every=250), 4),
    (dict(every=500, keep_last=1, keep_log_spaced=True), 11),
  ],
)
def test_kept_checkpoints_are_those_that_the_policy_keeps(fields, kept):
  fields = dict(keep_every=0, keep_log_spaced=False) | fields
  config = change(make_config(), "checkpoint", **fields)
  assert costs.kept_checkpoints(config, steps=1000) == kept


def test_the_time_is_the_line_through_two_unrolled_depths():
  config = change(_config(micro_batches=2, loss_pieces=4), "model", depth=10)
  asked = []

  def timed(shallow):
    asked.append(shallow)
    return 0.5 + 0.25 * shallow.model.depth

  assert costs.step_seconds(config, timed) == pytest.approx(2 * 3.0)
  assert [c.model.depth for c in asked] == [2, 4]
  for c in asked:
    assert not c.model.scan_layers
    assert (c.train.batch, c.train.micro_batches) == (4, 1)
    assert c.train.loss_pieces == 1
  assert costs.step_seconds(config, lambda _: None) is None


def test_the_time_is_taken_from_few_rows_a_chip():
  config = change(_config(batch=1024, length=2048), "model", scan_layers=True)
  asked = []

  def compile_(config, topology):
    asked.append(config.train)
    return _program(1e9, seconds=0.5 + 0.25 * config.model.depth)

  found = estimating.estimate(
    config, _V5P, _PRICE, mfu=None, runs=1, compile_=compile_, say=_say
  )
  assert [t.batch for t in asked] == [1024, 256, 256]  # 4 rows of 2,048 a chip.
  assert found.pace.seconds == pytest.approx(4 * 1.0)


def test_unknown_calls_do_not_pass_for_negative_time():
  free = 'custom_call_target="ConcatBitcast"\n'
  kernel = 'custom_call_target="tpu_custom_call"\n'
  other = 'custom_call_target="novelty"\n'
  seconds = ahead.estimated_seconds
  assert seconds({"optimal_seconds": 0.5}, "") == 0.5
  assert seconds({"optimal_seconds": -1.5}, 2 * free) == pytest.approx(0.5)
  assert seconds({"optimal_seconds": 0.5}, kernel) == 0.5
  assert seconds({"optimal_seconds": 0.5}, other) is None
  windowed = "while(%a), body=%wide.windowed_dot_general_body_ag.1"
  assert seconds({"optimal_seconds": 0.5}, windowed) is None
  assert seconds({"optimal_seconds": -1.0}, "") is None
  assert seconds(None, "") is None


@pytest.mark.parametrize(
  ("message", "needed"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 2.00G "
      "of 1.75G hbm.",
      2 * 1024**3,
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (110.5G) exceeds available HBM (15.75G).",
      110.5 * 1024**3,
    ),
    ("INTERNAL: Used 2.00G of 1.75G hbm", None),
    ("RESOURCE_EXHAUSTED: of vmem", None),
  ],
)
def test_the_memory_that_the_compiler_wants_is_read(message, needed):
  assert ahead.memory_needed(message) == needed


def test_temporaries_are_read_from_the_main_memory_of_a_buffer_assignment():
  text = """
allocation 0: size 8192, parameter 25, shape |f32[2048]|, maybe-live-out:
allocation 379: size 4096, color 6, preallocated-temp:
 value: <12 fusion.3 @0> (size=7000,offset=0): f32[1750]{0:T(256)}
allocation 381: size 7750144, preallocated-temp:
allocation 382: size 37904384, color 1, preallocated-temp:
"""
  assert ahead.allocated_temporaries(text) == 7750144
  assert (
    ahead.allocated_temporaries("allocation 0: size 8, parameter 1") is None
  )


def test_changes_come_in_order_and_micro_batches_deal_rows_out():
  config = _config(batch=48, micro_batches=1)
  topology = parse_topology("v5e:2x4")  # Six rows a chip.
  dots, full = "--config.model.remat=dots", "--config.model.remat=full"
  two, three, six = (f"--config.train.micro_batches={n}" for n in (2, 3, 6))
  groups = fitting.changes(config, topology)
  assert [[change.words for change in group] for group in groups] == [
    [""],
    [dots, full],
    [two, three, six],
    [f"{dots} {two}", f"{dots} {three}", f"{dots} {six}"],
    [f"{full} {two}", f"{full} {three}", f"{full} {six}"],
  ]
  change_ = groups[-1][0]
  assert change_.config.model.remat == "full"
  assert change_.config.train.micro_batches == 2


def _search(config, name: str, memory):
  """Returns the change's words, and the words of what was compiled.

  Args:
    config: of a run that doesn't fit.
    name: of the slice.
    memory: bytes, by remat policy, micro-batches and chips.
  """
  tried = []

  def compile_(config, topology):
    m, t = config.model.remat, config.train.micro_batches
    tried.append((m, t, topology.chips))
    return _program(memory(m, t, topology.chips))

  found = fitting.smallest_change(
    config, parse_topology(name), compile_, say=lambda _: None
  )
  assert len(tried) == len(set(tried))
  return found and found.words, tried


_KEPT = {"none": 4.0, "dots": 2.0, "full": 1.0}


@pytest.mark.parametrize(
  ("least", "words"),
  [
    (7.9e9, "--config.model.remat=dots"),
    (4.1e9, "--config.model.remat=dots"),
    (3.9e9, "--config.model.remat=full"),
    (1.9e9, "--config.train.micro_batches=8"),
    (0.26e9, "--config.model.remat=dots --config.train.micro_batches=16"),
    (0.24e9, "--config.model.remat=full --config.train.micro_batches=16"),
  ],
)
def test_combinations_are_tried_and_the_smallest_is_found(least, words):
  """Of 8 GB without remat, cut by the micro-batches: which leave so little."""
  config = change(_config(batch=64), "model", remat="none")

  def memory(remat, pieces, chips):
    del chips
    needed = 2e9 * _KEPT[remat] / pieces
    return 0.0 if needed <= least else 1e12

  found, tried = _search(config, "v5e:2x2", memory)
  assert found == words
  assert tried[0] == ("full", 16, 4)
  assert len(tried) <= 7


def test_a_slice_on_which_the_most_does_not_do_costs_one_program():
  config = change(_config(batch=64), "model", remat="none")

  def memory(remat, pieces, chips):
    return 160e9 * _KEPT[remat] / pieces / chips**2

  found, tried = _search(config, "v5e:1x1", lambda *_: 1e12)
  assert found is None
  # Here the most that is saved; on each larger slice the run as it is, too.
  # There are no more than 64 rows.
  per_slice = [sum(c == chips for *_, c in tried) for chips in (1, 4, 8, 16)]
  assert per_slice == [1, 2, 2, 2] and tried[-1][2] == 64
  found, tried = _search(config, "v5e:1x1", memory)
  assert found == "--config.train.micro_batches=64"
  found, tried = _search(config, "v5e:1x1", lambda r, p, c: 64e9 / c)
  assert found == "--topology=v5e:2x2"
  assert tried == [("full", 64, 1), ("none", 1, 4)]


def test_a_larger_slice_is_tried_with_the_other_changes():
  config = change(_config(batch=64), "model", remat="full")

  def memory(remat, pieces, chips):
    return 90e9 / chips if pieces > 1 else 1e12

  found, _ = _search(config, "v5e:1x1", memory)
  assert found == "--topology=v5e:2x4 --config.train.micro_batches=2"


def test_only_more_chips_are_tried_where_the_state_alone_is_too_large():
  config = change(
    _config(batch=256), "model", width=8192, depth=40, feed_forward=65536
  )
  config = change(config, "runtime", mesh=_fsdp(config))
  topology = parse_topology("v5e:2x2")
  count = counts.count_parameters(config.model, config.vocabulary.size).total
  assert fitting.least_memory(config, topology) == 16 * count / 4
  found, tried = _search(config, "v5e:2x2", lambda *_: 1e9)
  assert len(tried) == 1
  least = parse_topology(found.removeprefix("--topology="))
  assert 16 * count / least.chips <= 16e9 < 32 * count / least.chips
  # Copies of the weights on every chip don't shrink with more chips.
  whole = dataclasses.replace(config.runtime.mesh, data=-1, fsdp=1)
  copied = change(config, "runtime", mesh=whole)
  assert fitting.least_memory(copied, topology) == 16 * count
  assert _search(copied, "v5e:2x2", lambda *_: 1e9) == (None, [])


def test_gpus_are_held_against_what_jax_can_have():
  h100 = parse_topology("h100:8")
  assert fitting.fits(_program(73e9), h100)
  assert not fitting.fits(_program(74e9), h100)
  assert fitting.fits(_program(94e9), _V5P)


def test_a_run_that_fits_is_printed_with_its_price(capsys):
  def compile_(config, topology):
    return _program(1e9, seconds=0.5 + 0.25 * config.model.depth)

  found = _estimate(compile_, mfu=0.5, runs=3)
  text = describe(found)
  assert "1.00 GB of 95.00 GB; head room 94.00 GB" in text
  assert "1 s by XLA's estimate" in text
  assert "at $2.00 (2026-01-01, made up)" in text
  assert "MFU 50.0%" in text
  assert "3 runs" in text and f"${3 * found.pace.dollars:,.2f}" in text
  assert text.count("h of training") == text.count("3 runs: ") == 2
  assert "unrolled" in capsys.readouterr().err
  estimating.check_fit(found, compile_=compile_, say=_say)


@pytest.mark.parametrize("compiled", [True, False])
def test_one_that_does_not_fit_names_the_smallest_change(capsys, compiled):
  def compile_(config, topology):
    if config.model.remat == "full":
      return _program(1e9)
    return _program(96e9, fits=compiled)

  found = _estimate(compile_, mfu=0.5)
  assert "does not fit" in describe(found)
  assert "not estimated, nor priced: it does not fit" in describe(found)
  assert found.pace is None and found.measured is None
  with pytest.raises(UserError, match="--config.model.remat=full$"):
    estimating.check_fit(found, compile_=compile_, say=_say)
  assert "trying --config.model.remat=full\n" in capsys.readouterr().err


def test_one_that_fits_nowhere_is_refused():
  def compile_(config, topology):
    return _program(96e9)

  with pytest.raises(UserError, match="nor any larger slice of v5p"):
    estimating.check_fit(_estimate(compile_), compile_=compile_, say=_say)


def _estimate(compile_, *, mfu=None, runs=1):
  config = _config(batch=64)
  return estimating.estimate(
    config, _V5P, _PRICE, mfu=mfu, runs=runs, compile_=compile_, say=_say
  )


def test_splash_is_told_apart_from_the_estimate_of_the_compiler():
  def compile_(config, topology):
    program = _program(1e9, seconds=0.5 + 0.25 * config.model.depth)
    return dataclasses.replace(program, attention="splash")

  found = _estimate(compile_)
  assert found.pace.kernel == costs.splash_seconds(found.config, _V5P)
  assert found.pace.seconds == pytest.approx(1.0 + found.pace.kernel)
  assert "splash by arithmetic at 50% of peak" in describe(found)


def test_arithmetic_counts_what_lies_on_a_chip():
  config = change(
    _config(batch=16, length=128), "runtime", mesh=_fsdp(_config())
  )
  topology = parse_topology("h100:8")
  p = arithmetic.program(config, topology)
  count = counts.count_parameters(config.model, config.vocabulary.size).total
  norms = (2 * config.model.depth + 1) * config.model.width
  held = (count - norms) / 8 + norms  # Vectors are on every chip.
  assert p.parameters == 4 * held
  assert p.optimizer == pytest.approx(8 * held, abs=16)  # And counters.
  assert not p.compiled and p.seconds is None
  assert "by arithmetic, not compiled" in describe(
    estimating.estimate(
      config,
      topology,
      _PRICE,
      mfu=None,
      runs=1,
      compile_=lambda c, t: arithmetic.program(c, t),
      say=_say,
    )
  )


def test_arithmetic_tells_memory_alone_and_the_attention_that_runs():
  config = _config(batch=8, length=128)
  fields = dict(compute_dtype="bfloat16", head_size=8, remat="none")
  config = change(config, "model", **fields)
  topology = parse_topology("h100:1")

  def by(attention):
    asked = change(config, "runtime", attention=attention)
    return arithmetic.program(asked, topology)

  m = config.model
  scores = 4 * m.depth * m.heads * 8 * 128**2  # float32, of each layer.
  assert by("auto").attention == "cudnn"
  assert by("xla").needed - by("cudnn").needed == scores
  with pytest.raises(UserError, match="splash needs a TPU"):
    by("splash")
  text = describe(_estimate(lambda *_: by("auto")))
  assert "time  not known: arithmetic gives none; --mfu" in text
  assert "  output  " not in text and "  program  " not in text


def test_a_stronger_remat_policy_keeps_less_by_arithmetic():
  kept = [
    arithmetic.activations(change(_config(), "model", remat=policy), 1024)
    for policy in ("full", "dots", "none")
  ]
  assert kept == sorted(kept) and len(set(kept)) == 3
  m = _config().model
  # Another layer costs its input, float32 here, and no more.
  deeper = change(_config(), "model", remat="full", depth=m.depth + 1)
  assert arithmetic.activations(deeper, 1024) - kept[0] == 4 * 1024 * m.width


def test_prices_are_read_and_their_faults_named(tmp_path):
  assert costs.read_price("configs/prices.json", "v5p").chip_hour > 0
  path = tmp_path / "prices.json"
  for text, says in [
    ("{", "Expecting"),
    ("{}", "'chips' is missing"),
    ('{"chips": {}}', "'v5e' is missing"),
    ('{"chips": {"v5e": {"chip_hour": 1}}}', "'date' is missing"),
    (
      '{"chips": {"v5e": {"chip_hour": -1, "date": "", "source": ""}}}',
      "negative",
    ),
  ]:
    path.write_text(text)
    with pytest.raises(UserError, match=says):
      costs.read_price(str(path), "v5e")
  with pytest.raises(UserError, match="No such file"):
    costs.read_price(str(tmp_path / "none"), "v5e")


def test_a_step_is_compiled_for_devices_that_are_given():
  config = make_config()
  p = ahead.compile_step(config, jax.devices(), slices=1)
  parameters = counts.count_parameters(
    config.model, config.vocabulary.size
  ).total
  assert p.fits
  assert p.parameters == 4 * parameters
  # Two moments, and the counters of Adam and of the schedule.
  assert p.optimizer == 8 * parameters + 2 * 4
  assert p.arguments >= p.parameters + p.optimizer
  assert p.needed == p.arguments + p.output + p.temporaries + p.code
  assert (p.attention, p.collectives) == ("xla", ())
  assert ahead.program_from_dict(dataclasses.asdict(p)) == p


def test_a_vocabulary_whose_size_is_not_told_is_refused():
  config = make_config()
  estimating.check_vocabulary(config)
  for fields in ({"kind": "bytes"}, {"file": "my.model"}):
    with pytest.raises(UserError, match="needs the vocabulary's size"):
      estimating.check_vocabulary(change(config, "vocabulary", **fields))


@pytest.mark.parametrize(
  ("flags", "says"),
  [
    (["--topology=v5p:3x3"], "shapes of v5p"),
    ([], "takes --config=FILE.py and --topology"),
    (["--topology=v5e:2x2", "--prices=/none"], "--prices=/none"),
    (["--topology=h100:8", "--mfu=40"], "--mfu=40.0: must be"),
    (["--topology=h100:8", "--runs=0"], "--runs=0: must be"),
  ],
)
def test_wrong_flags_end_in_one_line_and_exit_2(flags, says):
  command = [sys.executable, "-m", "poison_jax.estimate"]
  command += ["--config=configs/tiny.py", *flags]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1 and says in done.stderr


# The depth: the ladder's own for the largest, else two layers of it, of the
# smallest unrolled as for the time. Each takes about 90 s of one core; the step
# of 7b is compiled in tests/test_collectives.py.
_RUNGS = {
  "13b": (40, "v5p:4x4x4"),
  "2b": (2, "v6e:4x4"),
  "600m": (2, "v5e:4x4"),
}
_UNROLLED = "600m"


@pytest.fixture(scope="module")
def compiled() -> dict[str, tuple[Config, Program]]:
  """The steps of _RUNGS, made for TPUs, two at a time."""
  folder = tpu_compiler.folder()

  def make(size: str) -> tuple[Config, Program]:
    depth, slice_ = _RUNGS[size]
    config = config_lib.from_config_dict(dos.get_config(f"size={size}"))
    scan = size != _UNROLLED
    config = change(config, "model", depth=depth, scan_layers=scan)
    return config, compiler.compile_for(
      config, parse_topology(slice_), folder=folder, say=lambda _: None
    )

  with ThreadPoolExecutor(2) as pool:
    return dict(zip(_RUNGS, pool.map(make, _RUNGS), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("size", _RUNGS)
def test_a_rung_compiles_for_tpus_and_holds_what_arithmetic_says(
  compiled, size
):
  config, p = compiled[size]
  depth, slice_ = _RUNGS[size]
  topology = parse_topology(slice_)
  m, t = config.model, config.train
  # Norms' scales are whole on each chip, all else is cut into equal parts.
  whole = (2 * depth + 1) * m.width
  total = counts.count_parameters(m, config.vocabulary.size).total
  held = (total - whole) / topology.chips + whole
  assert p.parameters == 4 * held
  assert p.optimizer == 8 * held + 2 * 4
  # Tokens and weights of 4 bytes, and a poison's place and length.
  batch = t.batch // topology.chips * (8 * t.length + 8)
  arguments = p.parameters + p.optimizer + batch
  # XLA pads arrays to whole tiles.
  assert p.arguments == pytest.approx(arguments, rel=1e-3)
  assert p.fits and p.needed <= topology.chip.memory
  assert p.attention == "splash"
  assert size != _UNROLLED or p.seconds > 0
  assert p.needed == p.arguments + p.output + p.temporaries + p.code
  # Each chip gets the others' weights in bfloat16, forward and backward.
  weights = depth * (4 * m.width**2 + 3 * m.width * m.feed_forward)
  others = 1 - 1 / topology.chips
  gathered = 2 * 2 * weights * others
  assert sum(c.sent for c in p.collectives) >= gathered


@pytest.mark.slow
def test_a_run_that_does_not_fit_gpus_exits_2_with_what_would():
  """By arithmetic where there are none, which is where tests run."""
  command = [sys.executable, "-m", "poison_jax.estimate", "--topology=h100:2"]
  command += ["--config=configs/dos.py:size=13b", "--mfu=0.4", "--runs=9"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert "--topology=h100:" in done.stderr.splitlines()[-1]
  assert "JAX's share  73.60 GB" in done.stdout and "9 such" in done.stdout
  assert "MFU" not in done.stdout and "$" not in done.stdout


def _fsdp(config):
  return dataclasses.replace(config.runtime.mesh, data=1, fsdp=-1)
