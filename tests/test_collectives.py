"""What devices exchange: read from a program, asserted of the train step."""
# ruff: noqa: E501 (a program's lines are as long as they are)

import dataclasses

import pytest
import tpu_compiler
from small_model import change, make_config

from configs import dos
from poison_jax import config as config_lib
from poison_jax.training import collectives, compiler
from poison_jax.training.collectives import Collective
from poison_jax.training.topology import parse_topology

_PROGRAM = """HloModule step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%mine (p0: s32[], p1: f32[16,4]) -> f32[2,4] {
  %p0 = s32[] parameter(0)
  %p1 = f32[16,4]{1,0:T(8,128)} parameter(1)
  %turned = f32[16,4]{0,1} copy(%p1)
  ROOT %slice = f32[2,4]{1,0} dynamic-slice(%turned, %p0, %p0)
}

%body (state: (s32[], f32[2,4])) -> (s32[], f32[2,4]) {
  %state = (s32[], f32[2,4]) parameter(0)
  %w = f32[2,4] get-tuple-element(%state), index=1
  %gather = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%w), replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(step)/while/dot"}
  %reduce = (f32[4]{0}, f32[16,4]{1,0}) all-reduce(%n, %g), replica_groups=mesh['x'=2,'y'=4] {'x','y'}, to_apply=%sum
  %norm = f32[4]{0} get-tuple-element(%reduce), index=0
  %gradient = f32[16,4]{1,0} get-tuple-element(%reduce), index=1
  %part = f32[2,4]{1,0} fusion(%i, %gradient), kind=kLoop, calls=%mine
  ROOT %next = (s32[], f32[2,4]) tuple(%i, %part, %norm)
}

%until (state.1: (s32[], f32[2,4])) -> pred[] {
  %state.1 = (s32[], f32[2,4]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[]{:T(128)} constant(33)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (w.1: f32[2,4]) -> f32[] {
  %w.1 = f32[2,4] parameter(0)
  %loop = (s32[], f32[2,4]) while(%start), condition=%until, body=%body
  %pair = f32[8] all-reduce(%w.1), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%sum
  %scattered = f32[2,4] reduce-scatter(%w.1), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%sum
  ROOT %done = f32[] add(%pair, %pair)
}
"""


def test_collectives_are_read_with_their_loops_groups_and_slices():
  gather, norm, gradient, pair, scattered = sorted(
    collectives.read_collectives(_PROGRAM, devices_per_slice=4),
    key=lambda c: (-c.times, c.kind, c.bytes),
  )
  assert gather == Collective(
    kind="all-gather",
    array="bf16[16,4]",
    bytes=128,
    group=8,
    far=True,
    sliced=False,
    times=33,
    origin="jit(step)/while/dot",
  )
  assert gather.sent == 33 * 128 * 7 / 8
  assert (norm.array, norm.sliced) == ("f32[4]", False)
  assert (gradient.array, gradient.sliced) == ("f32[16,4]", True)
  assert gradient.sent == 33 * 2 * 256 * 7 / 8
  assert (pair.group, pair.far, pair.times) == (2, True, 1)
  assert scattered.kind == "reduce-scatter" and scattered.bytes == 4 * 32
  assert (scattered.group, scattered.far) == (4, True)


def test_groups_within_a_slice_are_near():
  text = _PROGRAM.replace("{{0,4},{1,5},{2,6},{3,7}}", "{{0,1},{2,3}}")
  read = collectives.read_collectives(text, devices_per_slice=4)
  assert [c.far for c in read if c.array == "f32[8]"] == [False]


# As libtpu 0.0.42 writes a product with gathered weights for v6e:4x4, shortened.
_WINDOWED = """HloModule step

%cond (p: (bf16[64,8], u32[])) -> pred[] {
  %bound = u32[]{:T(128)} constant(8)
  %p = (bf16[64,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %less = pred[]{:T(512)} compare(%counter, %bound), direction=LT
}

%body (q: (bf16[64,8], u32[])) -> (bf16[64,8], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %q = (bf16[64,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %part = bf16[64,8]{1,0} get-tuple-element(%q), index=0
  %count = u32[]{:T(128)} get-tuple-element(%q), index=1
  %sent = (bf16[64,8]{1,0}, bf16[64,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%part), channel_id=53, source_target_pairs={{0,1},{1,0}}
  %came = bf16[64,8]{1,0} collective-permute-done(%sent)
  %next = u32[]{:T(128)} add(%count, %two), metadata={op_name="x"}
  ROOT %both = (bf16[64,8]{1,0}, u32[]{:T(128)}) tuple(%came, /*index=1*/%next)
}

ENTRY %main (w: bf16[64,8]) -> bf16[64,8] {
  %w = bf16[64,8] parameter(0)
  %loop = (bf16[64,8], u32[]) while(%start), condition=%cond, body=%body
  ROOT %out = bf16[64,8] get-tuple-element(%loop), index=0
}
"""


def test_a_loop_that_gathers_by_permutes_counts_its_rounds_and_bytes():
  (permute,) = collectives.read_collectives(_WINDOWED, devices_per_slice=2)
  assert (permute.kind, permute.array) == ("collective-permute", "bf16[64,8]")
  # 0, 2, 4 and 6.
  assert (permute.times, permute.sent) == (4, 4 * 2 * 64 * 8)


# As libtpu 0.0.42 writes the sums over two slices of v5e:4x4, shortened: those of
# the layers lie in a loop of which the first round has been taken out.
_SLICES = """HloModule step

%cond (p: (s32[], f32[144,8,128])) -> pred[] {
  %four = s32[]{:T(128)} constant(4)
  %p = (s32[]{:T(128)}, f32[144,8,128]{2,1,0}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %four), direction=LT
}

%body (q: (s32[], f32[144,8,128])) -> (s32[], f32[144,8,128]) {
  %q = (s32[]{:T(128)}, f32[144,8,128]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  %g = f32[144,8,128]{2,1,0:T(8,128)} get-tuple-element(%q), index=1
  %a = token[] after-all()
  %send.1 = (f32[144,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%g, %a), channel_id=16, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.91_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (f32[144,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%a), channel_id=15, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.91_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %next = (s32[]{:T(128)}, f32[144,8,128]{2,1,0}) tuple(%i, %came)
}

ENTRY %main (w: f32[144,8,128]) -> f32[144,8,128] {
  %w = f32[144,8,128]{2,1,0} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %first = s32[]{:T(128)} copy(%one)
  %start = (s32[]{:T(128)}, f32[144,8,128]{2,1,0}) tuple(%first, /*index=1*/%w)
  %loop = (s32[]{:T(128)}, f32[144,8,128]{2,1,0}) while(%start), condition=%cond, body=%body
  ROOT %out = f32[144,8,128] get-tuple-element(%loop), index=1
}
"""


def test_transfers_between_slices_are_told_as_the_sums_that_they_are():
  (found,) = collectives.read_collectives(_SLICES, devices_per_slice=16)
  assert found == Collective(
    kind="all-reduce",
    array="f32[144,8,128]",
    bytes=4 * 144 * 8 * 128,
    group=2,
    far=True,
    sliced=False,
    times=3,
    origin="all-reduce.91_0",
  )
  eight = _SLICES.replace("{1,2}x", "{1:8}x")
  (found,) = collectives.read_collectives(eight, devices_per_slice=16)
  assert found.group == 8


def test_another_transfer_between_slices_is_an_error():
  text = _SLICES.replace('"ALL_REDUCE"', '"ALL_TO_ALL"')
  with pytest.raises(ValueError, match="send.1.*ALL_TO_ALL"):
    collectives.read_collectives(text, devices_per_slice=16)


def test_a_loop_of_unknown_length_is_an_error():
  text = _PROGRAM.replace("constant(33)", "parameter(1)")
  with pytest.raises(ValueError, match="unknown length"):
    collectives.read_collectives(text, devices_per_slice=8)


def _only_weights_travel(config, found, *, least: int) -> None:
  """Asserts that no array but weights and their gradients is exchanged.

  So neither logits nor a batch's activations are ever gathered.

  Args:
    config: the run's.
    found: its step's collectives.
    least: bytes of the arrays that are looked at.
  """
  m = config.model
  heads, groups = m.heads * m.head_size, m.kv_heads * m.head_size
  sides = (config.vocabulary.size, heads, groups, m.feed_forward)
  weights = {tuple(sorted((m.width, side))) for side in sides}
  for c in found:
    shape = c.array.partition("[")[2].rstrip("]").split(",")
    shape = tuple(sorted(int(s) for s in shape if s not in ("", "1")))
    assert c.bytes < least or shape in weights, c


def _has_fsdp(config, found, *, devices: int) -> None:
  """Asserts that each layer's weights are gathered, forward and backward.

  And that each matrix' gradient is summed, and a part of it kept: by a
  reduce-scatter, or by what compilers write in its place, an all-reduce with a
  slice.
  """
  depth = config.model.depth
  gathers = [c for c in found if c.kind == "all-gather" and c.times == depth]
  sums = [
    c
    for c in found
    if c.times == depth and (c.kind == "reduce-scatter" or c.sliced)
  ]
  assert len(gathers) >= 2 * 7 and len(sums) == 7
  assert all(c.group == devices for c in gathers + sums)


def _fsdp(config):
  mesh = dataclasses.replace(config.runtime.mesh, data=1, fsdp=-1)
  return change(config, "runtime", mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 4])
def test_fsdp_over_eight_cpu_devices_moves_weights_only(pieces):
  config = change(
    _fsdp(make_config()),
    "model",
    width=64,
    feed_forward=160,
    heads=4,
    kv_heads=2,
    head_size=20,
    depth=3,
    remat="full",
    tied_embeddings=False,
  )
  config = change(config, "train", batch=8, length=24, loss_pieces=pieces)
  p = compiler.compile_for(
    config, parse_topology("cpu:8"), folder="", say=lambda _: None
  )
  _only_weights_travel(config, p.collectives, least=4 * 64 * 40)
  _has_fsdp(config, p.collectives, devices=8)


@pytest.mark.slow
def test_the_7b_step_for_64_chips_moves_weights_only():
  c = dos.get_config("size=7b")
  c.model.depth, c.train.batch = 32, 128
  config = config_lib.from_config_dict(c)
  p = compiler.compile_for(
    config,
    parse_topology("v5p:4x4x4"),
    folder=tpu_compiler.folder(),
    say=lambda _: None,
  )
  _only_weights_travel(config, p.collectives, least=1_000_000)
  _has_fsdp(config, p.collectives, devices=64)


@pytest.mark.slow
def test_between_four_slices_goes_each_gradient_once():
  """So a chip sends the gradients of its own part of the weights, no more."""
  c = dos.get_config("size=1m")
  c.train.batch = 32
  config = _fsdp(config_lib.from_config_dict(c))
  topology = parse_topology("v5p:2x2x2*4")
  p = compiler.compile_for(
    config, topology, folder=tpu_compiler.folder(), say=lambda _: None
  )
  far = [c for c in p.collectives if c.far]
  assert {(c.kind, c.group) for c in far} == {("all-reduce", 4)}
  # More by norms that aren't cut, counters, and embeddings 96 wide in tiles of
  # 128; a layer more or less would be a tenth.
  weights = p.parameters
  assert weights < sum(c.bytes * c.times for c in far) < 1.11 * weights
  assert p.seconds is not None
