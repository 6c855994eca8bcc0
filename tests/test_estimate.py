"""The estimate: closed forms, refusals, the search for a change that fits."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest
from small_model import change, make_config

from poison_jax.errors import UserError
from poison_jax.model import counts
from poison_jax.studies import costs, estimating, fitting
from poison_jax.training import ahead, tpu_compiler
from poison_jax.training.ahead import Program
from poison_jax.training.topology import CHIPS, parse_topology

_V5P = parse_topology("v5p:4x4x4")
_PRICE = costs.Price(2.0, "2026-01-01", "made up")
_COMPILER = "build/estimate"


def _config(**train):
  return change(make_config(), "train", **train)


def _say(line: str) -> None:
  print(line, file=sys.stderr)


def _program(needed: float, *, fits=True, seconds=None) -> Program:
  return Program(fits, 1, 2, 3, 0, 4, 5, int(needed), seconds)


def test_a_topology_has_its_chips_and_the_larger_slices():
  assert (_V5P.name, _V5P.chips) == ("v5p:4x4x4", 64)
  larger = [t.name for t in parse_topology("v5e:8x8").larger()]
  assert larger == ["v5e:8x16", "v5e:16x16"]


def test_peaks_agree_with_the_table_that_training_uses():
  for chip in CHIPS.values():
    assert chip.peak_flops == counts.peak_flops(f"TPU {chip.name}")
    assert chip.source and chip.memory > 1e10
    chips = [parse_topology(f"{chip.name}:{s}").chips for s in chip.shapes]
    assert chips == sorted(chips)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("v5p", "like v5p:4x4x4"),
    ("v5q:2x2", "did you mean 'v5"),
    ("v5p:3x3x3", "shapes of v5p are 2x2x1"),
    ("v5e:4x4x4", "shapes of v5e are 1x1"),
  ],
)
def test_a_topology_that_does_not_exist_is_refused(text, says):
  with pytest.raises(UserError, match=says):
    parse_topology(text)


def test_the_costs_are_the_closed_forms():
  config = _config(steps=1800, batch=8, length=16)
  found = costs.run_costs(config, _V5P, seconds=2.0, price=_PRICE)
  size = config.vocabulary.size
  flops = counts.flops_per_token(config.model, size, 16).total * 8 * 16
  parameters = counts.count_parameters(config.model, size).total
  assert found.hours == pytest.approx(1.0)
  assert found.dollars == pytest.approx(64 * 2.0)
  assert found.mfu == pytest.approx(flops / (2.0 * 64 * 459e12))
  assert found.checkpoints == 2
  assert found.storage == 2 * 12 * parameters


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
  config = change(_config(micro_batches=2, loss_chunk=4), "model", depth=10)
  asked = []

  def timed(shallow):
    asked.append(shallow)
    return 0.5 + 0.25 * shallow.model.depth

  assert costs.step_seconds(config, timed) == pytest.approx(2 * 3.0)
  assert [c.model.depth for c in asked] == [2, 4]
  for c in asked:
    assert not c.model.scan_layers
    assert (c.train.batch, c.train.micro_batches) == (4, 1)
    assert c.train.loss_chunk == 0
  assert costs.step_seconds(config, lambda _: None) is None


def test_unknown_calls_do_not_pass_for_negative_time():
  free = 'custom_call_target="ConcatBitcast"\n'
  kernel = 'custom_call_target="tpu_custom_call"\n'
  seconds = ahead.estimated_seconds
  assert seconds({"optimal_seconds": 0.5}, "") == 0.5
  assert seconds({"optimal_seconds": -1.5}, 2 * free) == pytest.approx(0.5)
  assert seconds({"optimal_seconds": 0.5}, kernel) is None
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


def test_changes_come_in_order_and_micro_batches_deal_rows_out():
  config = _config(batch=64, micro_batches=1)
  topology = parse_topology("v5e:2x4")
  words = [c.words for c in fitting.changes(config, topology)]
  full = "--config.model.remat=full"
  assert words[:5] == [
    "--config.model.remat=dots",
    full,
    f"{full} --config.train.micro_batches=2",
    f"{full} --config.train.micro_batches=4",
    f"{full} --config.train.micro_batches=8",
  ]
  assert words[5] == "--topology=v5e:4x4"
  assert len(words) == 5 + len(topology.larger())


def test_only_more_chips_are_tried_where_the_state_alone_is_too_large():
  config = change(
    make_config(), "model", width=8192, depth=40, feed_forward=65536
  )
  topology = parse_topology("v5e:2x2")
  assert fitting.least_memory(config, topology) > topology.chip.memory
  words = [c.words for c in fitting.changes(config, topology)]
  assert words and all(w.startswith("--topology=") for w in words)
  least = parse_topology(words[0].removeprefix("--topology="))
  assert fitting.least_memory(config, least) < least.chip.memory


def test_a_run_that_fits_is_printed_with_its_price(capsys):
  def compile_(config, topology):
    return _program(1e9, seconds=0.5 + 0.25 * config.model.depth)

  estimating.estimate(_config(), _V5P, _PRICE, compile_=compile_, say=_say)
  said = capsys.readouterr()
  assert "1.00 GB of 95.00 GB; head room 94.00 GB" in said.out
  assert "1 s by XLA's estimate" in said.out
  assert "at $2.00 a chip and hour (2026-01-01, made up)" in said.out
  assert "unrolled" in said.err


@pytest.mark.parametrize("compiled", [True, False])
def test_one_that_does_not_fit_names_the_smallest_change(capsys, compiled):
  def compile_(config, topology):
    if config.model.remat == "full":
      return _program(1e9)
    return _program(96e9, fits=compiled)

  with pytest.raises(UserError, match="--config.model.remat=full$"):
    estimating.estimate(_config(), _V5P, _PRICE, compile_=compile_, say=_say)
  said = capsys.readouterr()
  assert "does not fit" in said.out
  assert "trying --config.model.remat=dots" in said.err


def test_one_that_fits_nowhere_is_refused():
  with pytest.raises(UserError, match="nor any larger slice of v5p"):
    estimating.estimate(
      _config(), _V5P, _PRICE, compile_=lambda *_: _program(96e9), say=_say
    )


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
  p = ahead.compile_step(config, jax.devices())
  parameters = counts.count_parameters(
    config.model, config.vocabulary.size
  ).total
  assert p.fits
  assert p.parameters == 4 * parameters
  # Two moments, and the counters of Adam and of the schedule.
  assert p.optimizer == 8 * parameters + 2 * 4
  assert p.arguments >= p.parameters + p.optimizer
  assert p.needed == p.arguments + p.output + p.temporaries + p.code


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
  ],
)
def test_wrong_flags_end_in_one_line_and_exit_2(flags, says):
  command = [sys.executable, "-m", "poison_jax.estimate"]
  command += ["--config=configs/tiny.py", *flags]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1 and says in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
  not tpu_compiler.is_installed(_COMPILER),
  reason="no TPU compiler in build/estimate: python -m poison_jax.estimate "
  "installs it",
)
def test_two_layers_compile_for_a_slice_of_tpus():
  config = change(make_config(), "model", width=256, heads=2, head_size=128)
  config = change(config, "model", kv_heads=2, feed_forward=512)
  config = change(config, "runtime", mesh=_fsdp(config))
  p = tpu_compiler.compile_for(
    config, "v5e:2x4", folder=_COMPILER, say=lambda _: None
  )
  parameters = counts.count_parameters(
    config.model, config.vocabulary.size
  ).total
  assert p.fits
  # All but the norms' scales lie in eight parts.
  assert p.parameters / (4 * parameters) == pytest.approx(1 / 8, rel=0.01)
  assert json.dumps(dataclasses.asdict(p))


def _fsdp(config):
  return dataclasses.replace(config.runtime.mesh, data=1, fsdp=-1)
