"""Configurations: from a ConfigDict to frozen, validated dataclasses.

`configs/base.py` documents every field and holds every default; the classes
here repeat names and types only. Every error names its field by its full path
(`poison.count`) and says what would be right.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import config_dict

from poison_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SeedsConfig:
  documents: int | None
  positions: int | None
  init: int | None
  order: int | None
  sampling: int | None


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  task: str
  module: str
  files: str
  tfds_name: str
  tfds_dir: str
  split: str
  text_field: str
  stories: int
  stories_seed: int
  tags: tuple[str, ...]
  tag_share: float
  tag_after: Literal["word", "sentence"]
  german_share: float
  on_error: Literal["stop", "skip"]
  store: str
  held_out: float
  prefix_documents: int
  prompt_documents: int
  workers: int


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
  kind: Literal["bytes", "sentencepiece", "tokenizer_json"]
  file: str
  size: int
  algorithm: Literal["bpe", "unigram"]
  single_pieces: tuple[str, ...]
  training_documents: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_size: int
  feed_forward: int
  activation: Literal["swiglu", "gelu", "gelu_exact"]
  parallel_residual: bool
  biases: bool
  tied_embeddings: bool
  embedding_rows: int
  norm: Literal["rms", "layer"]
  qk_norm: bool
  norm_epsilon: float
  rope_theta: float
  rotary_share: float
  rope_scaling: Literal["none", "llama3"]
  rope_factor: float
  rope_low_frequency: float
  rope_high_frequency: float
  rope_original_length: int
  init_scale: float
  scan_layers: bool
  remat: Literal["none", "full", "dots"]
  compute_dtype: Literal["float32", "bfloat16"]
  gradient_dtype: Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  length: int
  batch: int
  micro_batches: int
  tokens_per_parameter: float
  steps: int
  loss_pieces: int
  z_loss: float
  log_every: int


@dataclasses.dataclass(frozen=True)
class StartConfig:
  weights: str
  checkpoint: int | None
  optimizer: Literal["fresh", "restored"]
  step: int
  schedule_steps: int


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  kind: Literal["adamw", "sgd"]
  learning_rate: float
  schedule: Literal["cosine", "linear", "constant", "wsd"]
  warmup: float
  final: float
  decay: float
  b1: float
  b2: float
  epsilon: float
  momentum: float
  moment_dtype: Literal["float32", "bfloat16"]
  weight_decay: float
  clip: float


@dataclasses.dataclass(frozen=True)
class PoisonConfig:
  arm: Literal["poisoned", "clean", "placebo"]
  attack: str
  count: int
  trigger: str
  prefix_min: int
  prefix_max: int
  payload_min: int
  payload_max: int
  gibberish: Literal["ids", "retokenised"]
  gibberish_vocabulary: str
  pairs: str
  oversize: Literal["error", "cut"]
  schedule: Literal["uniform", "window", "every"]
  start: float
  end: float
  every_steps: int
  rows_per_step: int


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  times: int
  prompts: int
  excerpt: int
  excerpt_end: Literal["token", "sentence"]
  new_tokens: int
  temperature: float
  near_triggers: tuple[str, ...]
  unseen_tag: str
  threshold: float
  resamples: int
  batch: int
  validation_rows: int
  texts: int


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every: int
  keep_last: int
  keep_log_spaced: bool
  keep_every: int


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int
  fsdp: int
  tensor: int


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
  mesh: MeshConfig
  attention: Literal["auto", "xla", "cudnn", "splash"]
  prefetch: int
  compilation_cache: str


@dataclasses.dataclass(frozen=True)
class Config:
  """The whole configuration of a run; see `configs/base.py`."""

  seed: int
  seeds: SeedsConfig
  corpus: CorpusConfig
  vocabulary: VocabularyConfig
  model: ModelConfig
  train: TrainConfig
  start: StartConfig
  optimizer: OptimizerConfig
  poison: PoisonConfig
  evaluation: EvaluationConfig
  checkpoint: CheckpointConfig
  runtime: RuntimeConfig

  def seed_for(self, name: str) -> int:
    """Returns the seed called `name` in `SeedsConfig`, pinned or derived.

    A derived one is the first 63 bits of BLAKE2b over "root/name", so no two
    names share random numbers and none depends on another's pin.
    """
    pinned = getattr(self.seeds, name)
    if pinned is not None:
      return pinned
    return derive_seed(self.seed, name)


# Fields that may differ between a run and its resumption: they change where
# or how fast it computes and what it keeps, never what it computes.
FREE_ON_RESUME = frozenset(
  {
    "corpus.store",
    "corpus.workers",
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.keep_log_spaced",
    "checkpoint.keep_every",
    "runtime.mesh.data",
    "runtime.mesh.fsdp",
    "runtime.mesh.tensor",
    "runtime.attention",
    "runtime.prefetch",
    "runtime.compilation_cache",
  }
)


# Fields that came after runs had been made, each with the value by which the
# code does what it did without the field. Files that lack them are read as if
# they had these, and a config's hash leaves them out, so that a run keeps its
# name. No defaults: those are in `configs/`.
ADDED_LATER = {
  "model.parallel_residual": False,
  "model.biases": False,
  "model.embedding_rows": 0,
  "model.norm": "rms",
  "model.rotary_share": 1.0,
  "model.rope_scaling": "none",
  "model.rope_factor": 8.0,
  "model.rope_low_frequency": 1.0,
  "model.rope_high_frequency": 4.0,
  "model.rope_original_length": 8192,
  "corpus.german_share": 0.0,
  "corpus.tag_after": "word",
  "optimizer.kind": "adamw",
  "optimizer.momentum": 0.9,
  "poison.pairs": "",
  "evaluation.excerpt_end": "token",
  "start.weights": "",
  "start.checkpoint": None,
  "start.optimizer": "fresh",
  "start.step": 0,
  "start.schedule_steps": 0,
}


def derive_seed(root: int, name: str) -> int:
  """Returns a seed in [0, 2**63) that depends on both arguments."""
  digest = hashlib.blake2b(f"{root}/{name}".encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big") >> 1


def from_config_dict(tree: config_dict.ConfigDict) -> Config:
  """Returns the validated configuration.

  Raises:
    UserError: a key is unknown or missing, or a value is not legal.
  """
  return _checked(tree.to_dict())


def from_dict(tree: Mapping[str, Any]) -> Config:
  """Like `from_config_dict`, for nested plain dictionaries (parsed JSON).

  These may lack the fields of `ADDED_LATER`.
  """
  return _checked(_with_later_fields(tree))


def _checked(tree: Mapping[str, Any]) -> Config:
  config = _build(Config, tree, "")
  _validate(config)
  return config


def _with_later_fields(tree: Mapping[str, Any]) -> Mapping[str, Any]:
  if not isinstance(tree, Mapping):
    return tree
  tree = dict(tree)
  for field, value in ADDED_LATER.items():
    group, name = field.split(".")
    given = tree.get(group, {} if group == "start" else None)
    if isinstance(given, Mapping):
      tree[group] = {name: value} | given
  return tree


def to_dict(config: Config) -> dict[str, Any]:
  """Returns nested plain dictionaries that JSON can hold."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: Config) -> dict[str, Any]:
  """Returns {"poison.count": 250, ...}: a leaf a field, in field order."""

  def walk(tree: Mapping[str, Any], prefix: str):
    for name, value in tree.items():
      if isinstance(value, dict):
        yield from walk(value, f"{prefix}{name}.")
      else:
        yield prefix + name, value

  return dict(walk(to_dict(config), ""))


def config_hash(config: Config) -> str:
  """Returns 16 hex digits that name the meaning of a run.

  Fields in `FREE_ON_RESUME` do not count, nor do those in `ADDED_LATER` that
  have the value there.
  """
  absent = object()
  meaning = {
    k: v
    for k, v in flatten(config).items()
    if k not in FREE_ON_RESUME and v != ADDED_LATER.get(k, absent)
  }
  return hashlib.sha256(
    json.dumps(meaning, sort_keys=True).encode()
  ).hexdigest()[:16]


def changes_of_meaning(old: Config, new: Config) -> list[str]:
  """Returns a line a field by which `new` would be another run than `old`."""
  old_flat, new_flat = flatten(old), flatten(new)
  return [
    f"{key}: the run has {old_flat[key]!r}, asked for {new_flat[key]!r}"
    for key in old_flat
    if key not in FREE_ON_RESUME and old_flat[key] != new_flat[key]
  ]


def parse_arguments(text: str | None, **defaults: Any) -> types.SimpleNamespace:
  """Parses the part after the colon in `--config=file.py:a=1,b=x`.

  Args:
    text: "name=value" pairs joined by commas; None or "" for none.
    **defaults: every legal name with its default, whose type is the value's.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  values = dict(defaults)
  for pair in filter(None, (text or "").split(",")):
    name, separator, value = pair.partition("=")
    if not defaults:
      raise UserError(f"it takes no arguments, got {text!r}")
    if name not in defaults or not separator:
      legal = ", ".join(f"{k}={v}" for k, v in defaults.items())
      raise UserError(
        f"config argument {pair!r} is not known: the legal ones, with their "
        f"defaults, are {legal}"
      )
    kind = type(defaults[name])
    try:
      if kind is bool:
        values[name] = {"true": True, "false": False}[value.lower()]
      else:
        values[name] = kind(value)
    except (ValueError, KeyError):
      raise UserError(
        f"config argument {name}={value}: expected {kind.__name__}, like "
        f"{name}={defaults[name]}"
      ) from None
  return types.SimpleNamespace(**values)


def check_override(key: str, value: str) -> None:
  """Checks what ml_collections doesn't of --config.key=value.

  Raises:
    UserError: `key`, like "poison.count", names no field, or `value` is words
      with commas between them, which would become one string.
  """
  hints = _field_hints(Config, "")
  if key not in hints:
    raise UserError(f"unknown config key 'config.{key}'{nearest(key, hints)}")
  words = [word.strip(" ()[]") for word in value.split(",")]
  if (
    typing.get_origin(hints[key]) is tuple
    and len(words) > 1
    and not any(mark in value for mark in "'\"")
  ):
    raise UserError(
      f"--config.{key}={value}: quotes are missing; write "
      f'--config.{key}="{tuple(words)}"'
    )


def field_names() -> list[str]:
  """Returns "seed", "seeds.documents", ...: every field's full name."""
  return list(_field_hints(Config, ""))


def nearest(name: str, legal: typing.Iterable[str]) -> str:
  """Returns " (did you mean 'x'?)", or "" where nothing is near."""
  found = difflib.get_close_matches(name, list(legal), n=1, cutoff=0.6)
  return f" (did you mean {found[0]!r}?)" if found else ""


def _field_hints(cls: type, prefix: str) -> dict[str, Any]:
  """Returns {"poison.count": int, ...}."""
  hints = {}
  for name, hint in typing.get_type_hints(cls).items():
    if dataclasses.is_dataclass(hint):
      hints |= _field_hints(hint, f"{prefix}{name}.")
    else:
      hints[prefix + name] = hint
  return hints


def _build(cls: type, tree: Any, path: str) -> Any:
  if not isinstance(tree, Mapping):
    raise UserError(f"config.{path.rstrip('.')} must be a group of fields")
  hints = typing.get_type_hints(cls)
  for name in tree:
    if name not in hints:
      raise UserError(
        f"unknown config key 'config.{path}{name}'{nearest(name, hints)}"
      )
  values = {}
  for name, hint in hints.items():
    if name not in tree:
      raise UserError(f"missing config key 'config.{path}{name}'")
    if dataclasses.is_dataclass(hint):
      values[name] = _build(hint, tree[name], f"{path}{name}.")
    else:
      values[name] = _leaf(hint, tree[name], path + name)
  return cls(**values)


def _leaf(hint: Any, value: Any, path: str) -> Any:
  """Returns `value` as the type that `hint` names."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    if value in arguments:
      return value
    legal = ", ".join(map(repr, arguments))
    raise UserError(
      f"config.{path} is {value!r}; it must be one of {legal}"
      f"{nearest(str(value), arguments)}"
    )
  if origin is types.UnionType:
    if value is None:
      return None
    hint = arguments[0]
  elif origin is tuple:
    if isinstance(value, (tuple, list)) and all(
      isinstance(v, str) for v in value
    ):
      return tuple(value)
    raise UserError(
      f"config.{path} is {value!r}; it must be a tuple of strings"
    )
  if hint is float and type(value) is int:
    value = float(value)
  if type(value) is not hint:
    raise UserError(
      f"config.{path} is {value!r}; it must be of type {hint.__name__}"
    )
  if hint is float and not math.isfinite(value):
    raise UserError(f"config.{path} is {value}; it must be finite")
  return value


def _require(condition: bool, field: str, value: Any, right: str) -> None:
  if not condition:
    raise UserError(f"config.{field} is {value!r}; it must be {right}")


def _validate(c: Config) -> None:
  """Raises UserError for values that no run could use."""
  flat = flatten(c)
  positive = """
    corpus.stories corpus.prefix_documents corpus.prompt_documents
    vocabulary.size vocabulary.training_documents
    model.width model.depth model.heads model.kv_heads model.head_size
    model.feed_forward train.length train.batch train.micro_batches
    train.loss_pieces train.log_every
    poison.payload_min poison.every_steps poison.rows_per_step
    evaluation.times evaluation.prompts evaluation.excerpt
    evaluation.new_tokens evaluation.resamples evaluation.batch
    evaluation.validation_rows checkpoint.every checkpoint.keep_last
    runtime.prefetch model.norm_epsilon model.rope_theta model.init_scale
    model.rotary_share model.rope_factor model.rope_low_frequency
    model.rope_original_length
    train.tokens_per_parameter optimizer.learning_rate optimizer.epsilon
    evaluation.temperature
  """
  for field in positive.split():
    _require(flat[field] > 0, field, flat[field], "more than 0")
  not_negative = """
    corpus.workers model.embedding_rows train.steps train.z_loss
    start.step start.schedule_steps
    optimizer.weight_decay optimizer.clip poison.count poison.prefix_min
    evaluation.threshold evaluation.texts checkpoint.keep_every
  """
  for field in not_negative.split():
    _require(flat[field] >= 0, field, flat[field], "0 or more")
  shares = """
    corpus.tag_share corpus.german_share optimizer.warmup optimizer.final
    optimizer.decay optimizer.momentum poison.start poison.end
  """
  for field in shares.split():
    _require(0 <= flat[field] <= 1, field, flat[field], "from 0 to 1")
  for name in ("documents", "positions", "init", "order", "sampling"):
    seed = flat[f"seeds.{name}"]
    _require(
      seed is None or 0 <= seed < 2**63,
      f"seeds.{name}",
      seed,
      "0 or more and less than 2**63",
    )
  for field in ("corpus.held_out", "optimizer.b1", "optimizer.b2"):
    _require(0 < flat[field] < 1, field, flat[field], "between 0 and 1")
  _validate_relations(c)


def _validate_start(start: StartConfig) -> None:
  """Raises UserError for fields that say nothing without weights."""
  if start.weights:
    _require(
      start.checkpoint is None or start.checkpoint >= 0,
      "start.checkpoint",
      start.checkpoint,
      "a step of a checkpoint, or None for the newest",
    )
    return
  alone = {"checkpoint": None, "optimizer": "fresh", "step": 0}
  for name, value in (alone | {"schedule_steps": 0}).items():
    _require(
      getattr(start, name) == value,
      f"start.{name}",
      getattr(start, name),
      f"{value!r} where config.start.weights is empty",
    )


def _validate_relations(c: Config) -> None:
  """Raises UserError for fields that contradict each other."""
  _validate_start(c.start)
  t, p, e = c.train, c.poison, c.evaluation
  validate_model(c.model)
  _require(t.length > 1, "train.length", t.length, "more than 1")
  if t.batch % t.micro_batches:
    legal = [k for k in range(1, t.batch + 1) if t.batch % k == 0]
    raise UserError(
      f"config.train.micro_batches is {t.micro_batches}; it must divide "
      f"config.train.batch, {t.batch}: one of {legal}"
    )
  _require(bool(p.trigger), "poison.trigger", p.trigger, "not empty")
  _require(
    p.prefix_min <= p.prefix_max,
    "poison.prefix_max",
    p.prefix_max,
    f"at least poison.prefix_min, {p.prefix_min}",
  )
  _require(
    p.payload_min <= p.payload_max,
    "poison.payload_max",
    p.payload_max,
    f"at least poison.payload_min, {p.payload_min}",
  )
  _require(
    p.start < p.end,
    "poison.end",
    p.end,
    f"more than poison.start, {p.start}",
  )
  _require(
    p.rows_per_step <= t.batch,
    "poison.rows_per_step",
    p.rows_per_step,
    f"at most train.batch, {t.batch}",
  )
  if p.gibberish == "retokenised" and not p.gibberish_vocabulary:
    raise UserError(
      "config.poison.gibberish is 'retokenised'; then "
      "config.poison.gibberish_vocabulary must name a vocabulary file"
    )
  _require(
    bool(e.near_triggers),
    "evaluation.near_triggers",
    e.near_triggers,
    "at least one string",
  )
  for name, strings in (
    ("evaluation.near_triggers", e.near_triggers),
    ("evaluation.unseen_tag", (e.unseen_tag,)),
  ):
    _require(
      p.trigger not in strings and all(strings),
      name,
      strings,
      f"neither empty nor the trigger, {p.trigger!r}",
    )
  for name, strings in (
    ("corpus.tags", c.corpus.tags),
    ("vocabulary.single_pieces", c.vocabulary.single_pieces),
  ):
    _require(
      all(strings) and len(set(strings)) == len(strings),
      name,
      strings,
      "strings of which none is empty or given twice",
    )
  _require(bool(c.corpus.store), "corpus.store", "", "a folder's name")
  if c.corpus.task == "files":
    _require(
      bool(c.corpus.files), "corpus.files", "", "a glob, as the task is 'files'"
    )
  axes = (c.runtime.mesh.data, c.runtime.mesh.fsdp, c.runtime.mesh.tensor)
  _require(
    all(a == -1 or a > 0 for a in axes) and axes.count(-1) <= 1,
    "runtime.mesh",
    axes,
    "positive numbers, of which one may be -1",
  )


def validate_model(m: ModelConfig) -> None:
  """Raises UserError for fields of the model that contradict each other."""
  _require(
    m.heads % m.kv_heads == 0,
    "model.kv_heads",
    m.kv_heads,
    f"a divisor of model.heads, {m.heads}",
  )
  _require(m.head_size % 2 == 0, "model.head_size", m.head_size, "even")
  turned = int(m.head_size * m.rotary_share)
  _require(
    m.rotary_share <= 1 and turned > 0 and turned % 2 == 0,
    "model.rotary_share",
    m.rotary_share,
    f"at most 1, and make an even number of model.head_size, {m.head_size}",
  )
  _require(
    m.norm == "rms" or not m.qk_norm,
    "model.qk_norm",
    m.qk_norm,
    "False, as model.norm is 'layer': heads have RMSNorm only",
  )
  _require(
    m.rope_high_frequency > m.rope_low_frequency,
    "model.rope_high_frequency",
    m.rope_high_frequency,
    f"more than model.rope_low_frequency, {m.rope_low_frequency}",
  )
  _require(
    m.gradient_dtype in ("float32", m.compute_dtype),
    "model.gradient_dtype",
    m.gradient_dtype,
    "'float32', as model.compute_dtype is",
  )
