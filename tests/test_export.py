"""The commands that import and export, their folders and their refusals."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import made_vocabularies
import made_weights
import numpy as np
import pytest
import small_run
from safetensors.numpy import load_file, save_file

from poison_jax.errors import UserError
from poison_jax.evaluation.generation import sampling_function
from poison_jax.model.decoder import Decoder
from poison_jax.training import checkpoints, imported, loop
from poison_jax.training.opened import open_run
from poison_jax.vocabulary import (
  ByteVocabulary,
  TableVocabulary,
  TokenizerVocabulary,
)
from poison_jax.weights import architectures, files, layout, tokenizer_files

# A Python with torch and transformers, for what only they can say.
_TORCH = os.environ.get("POISON_JAX_TRANSFORMERS_PYTHON", sys.executable)


def _run(command: str, *arguments) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"poison_jax.{command}", *map(str, arguments)],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
    capture_output=True,
    text=True,
    check=False,
  )


def _refused(result: subprocess.CompletedProcess, says: str) -> None:
  assert result.returncode == 2, result.stderr
  assert result.stderr.startswith("error: ")
  assert result.stderr.count("\n") == 1, result.stderr
  assert says in result.stderr


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("export")
  small_run.prepare(folder / "store")
  config = small_run.make_config(
    folder / "store", train__steps=4, poison__count=2, evaluation__times=1
  )
  loop.train(config, str(folder / "run"), profile=0)
  return folder / "run"


def test_an_exported_run_is_imported_bit_for_bit(trained, tmp_path):
  result = _run("export", trained, tmp_path / "exported", "--step=3")
  assert result.returncode == 0, result.stderr
  assert "LlamaForCausalLM, step 3" in result.stdout
  result = _run("import_weights", tmp_path / "exported", tmp_path / "imported")
  assert result.returncode == 0, result.stderr
  assert sorted(p.name for p in tmp_path.iterdir()) == ["exported", "imported"]
  opened = open_run(str(trained), store=None, say=print)
  ((_, params),) = opened.params("3")
  found = imported.read(str(tmp_path / "imported"))
  assert found.model(opened.run.config.model).width == 16
  assert found.architecture == "llama"
  assert pathlib.Path(found.vocabulary_path).is_file()
  file = found.files["model.safetensors"]
  assert file["bytes"] == (
    (tmp_path / "exported" / "model.safetensors").stat().st_size
  )
  decoder = Decoder(found.model(opened.run.config.model), found.vocabulary_size)
  again = found.restore(imported.abstract_params(decoder, opened.mesh))
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_an_import_onto_four_devices_is_the_one_on_one(tmp_path):
  source = made_weights.make_source("llama3", tmp_path / "source")
  code = """
import sys
import jax, numpy as np
sys.path[:0] = ["tests", "."]
import made_weights, pathlib
decoder, params = made_weights.load(pathlib.Path(sys.argv[1]))
assert len(jax.devices()) == 4
assert not params["layers"]["up"].sharding.is_fully_replicated
leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(params))}
np.savez(sys.argv[2], **leaves)
"""
  flag = "--xla_force_host_platform_device_count=4"
  subprocess.run(
    [sys.executable, "-c", code, str(source), str(tmp_path / "leaves.npz")],
    env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
    check=True,
  )
  _, params = made_weights.load(source)
  with np.load(tmp_path / "leaves.npz") as found:
    for i, leaf in enumerate(jax.tree.leaves(params)):
      np.testing.assert_array_equal(found[str(i)], leaf)


def _cut(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[:-100])


def _change_config(**fields):
  def change(source: pathlib.Path) -> None:
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))

  return change


def _without(name: str):
  def change(source: pathlib.Path) -> None:
    (source / name).unlink()

  return change


def _other_type(source: pathlib.Path) -> None:
  path = source / "model-00003-of-00003.safetensors"
  there = {k: v.astype("int64") for k, v in load_file(path).items()}
  save_file(there, path)


def _pickled(source: pathlib.Path) -> None:
  for path in source.glob("model*"):
    path.unlink()
  (source / "pytorch_model.bin").write_bytes(b"x")


_SECOND = "model-00002-of-00003.safetensors"
_BAD = {
  "a missing file": (_without(_SECOND), f"{_SECOND} is missing, one of the 3"),
  "a cut file": (lambda s: _cut(s / _SECOND), f"{_SECOND}: damaged"),
  "a wrong architecture": (
    _change_config(model_type="gpt2"),
    "model_type is 'gpt2'; the architectures that can be read are",
  ),
  "a wrong shape": (
    _change_config(intermediate_size=30),
    "of shape (28, 24); config.json makes it (30, 24)",
  ),
  "more layers": (_change_config(num_hidden_layers=3), "is missing, and 8"),
  "fewer layers": (_change_config(num_hidden_layers=1), "doesn't have"),
  "odd heads": (_change_config(head_dim=9), "model.head_size is 9; it must"),
  "another rotary scaling": (
    _change_config(rope_parameters={"rope_type": "yarn", "factor": 2.0}),
    "its type is 'yarn'",
  ),
  "another type": (_other_type, "of type I64"),
  "a small embedding": (_change_config(vocab_size=20), "has 29 ids, more"),
  "no tokenizer": (_without("tokenizer.json"), "neither tokenizer.json nor"),
  "no config": (_without("config.json"), "config.json: No such file"),
  "a pickle": (_pickled, "pytorch_model.bin is a pickle"),
}


@pytest.mark.parametrize("name", _BAD)
def test_bad_weights_are_refused_in_a_line(name, tmp_path):
  change, says = _BAD[name]
  source = made_weights.make_source("llama3", tmp_path / "source")
  change(source)
  result = _run("import_weights", source, tmp_path / "out")
  _refused(result, says)
  assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_flags_and_folders_that_can_not_be_are_refused(trained, tmp_path):
  full = tmp_path / "full"
  full.mkdir()
  (full / "mine").write_text("kept")
  source = made_weights.make_source("llama3", tmp_path / "source")
  for command, arguments, says in [
    ("import_weights", (source, full), "is not empty"),
    ("import_weights", (tmp_path / "none", tmp_path / "o"), "no such folder"),
    ("import_weights", ("who/what", tmp_path / "o"), "the hub gave none"),
    (
      "import_weights",
      (source, tmp_path / "o", "--revision=x"),
      "is a folder and has none",
    ),
    ("import_weights", (source,), "usage:"),
    ("export", (trained, full), "is not empty"),
    (
      "export",
      (trained, tmp_path / "o", "--step=2"),
      "no checkpoint of step 2",
    ),
    ("export", (trained, tmp_path / "o", "--step=all"), "--step=all: must be"),
    ("export", (full, tmp_path / "o"), "holds no run"),
  ]:
    _refused(_run(command, *arguments), says)
  bare = tmp_path / "bare"
  shutil.copytree(trained, bare)
  shutil.rmtree(bare / "checkpoints")
  _refused(_run("export", bare, tmp_path / "o"), "has no checkpoint yet")
  assert not (tmp_path / "o").exists()
  assert [p.name for p in full.iterdir()] == ["mine"]


_VOCABULARIES = {
  "bytes": lambda: ByteVocabulary(),
  "bytes and more": lambda: ByteVocabulary(extra_ids=5),
  "tokenizer": lambda: TokenizerVocabulary(
    made_vocabularies.make_tokenizer_json(), eos=None
  ),
  **{
    f"{algorithm} {size}": lambda algorithm=algorithm, size=size: (
      made_vocabularies.train(algorithm=algorithm, size=size)
    )
    for algorithm in ("bpe", "unigram")
    for size in (140, 1500)
  },
}


@pytest.mark.parametrize("name", _VOCABULARIES)
def test_an_exported_tokenizer_gives_the_same_ids(name, tmp_path):
  """`write` compares on its own; here on texts that it hasn't seen."""
  vocabulary = _VOCABULARIES[name]()
  tokenizer_files.write(vocabulary, str(tmp_path), texts=[], length=64)
  import tokenizers

  theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  theirs.encode_special_tokens = True
  for text in made_vocabularies.ODD + made_vocabularies.CORPUS:
    ids = theirs.encode(text).ids
    np.testing.assert_array_equal(ids, vocabulary.encode(text), err_msg=text)
    assert theirs.decode(ids) == vocabulary.decode(ids)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert theirs.token_to_id(config["eos_token"]) == vocabulary.eos_id


def test_a_tokenizer_that_differs_is_refused(tmp_path, monkeypatch):
  table = TableVocabulary.make(
    pieces=[b"a"], eos_id=0, control_ids=[], known={}
  )
  with pytest.raises(UserError, match="kind 'table', .* can't be exported"):
    tokenizer_files.write(table, str(tmp_path), texts=[], length=8)
  vocabulary = made_vocabularies.train(algorithm="bpe", size=140)
  monkeypatch.setattr(tokenizer_files, "_merges", lambda *_: [])
  with pytest.raises(UserError, match="can't be written as a tokenizer.json"):
    tokenizer_files.write(vocabulary, str(tmp_path), texts=["Story"], length=8)
  assert not list(tmp_path.iterdir())


def test_a_manifest_that_is_no_manifest_is_refused(tmp_path):
  with pytest.raises(UserError, match="holds no imported weights"):
    imported.read(str(tmp_path))
  (tmp_path / "imported.json").write_text("{")
  with pytest.raises(UserError, match="is damaged"):
    imported.read(str(tmp_path))
  (tmp_path / "imported.json").write_text(
    json.dumps({"format": 9, "code_version": ""})
  )
  with pytest.raises(UserError, match="has format 9"):
    imported.read(str(tmp_path))


_MEASURE = """
import json, sys
sys.path[:0] = ["tests", "."]
import made_weights, pathlib
from poison_jax.weights import files
folder = pathlib.Path(sys.argv[1])
model, _, tensors, by_path = made_weights.model_of(folder)
there = files.Files(str(folder))
there.check(tensors, tied=model.tied_embeddings)
made_weights.load(made_weights.ORACLES / "llama_tied")  # Compilers and threads.
def status(name):
  line = next(x for x in open("/proc/self/status") if x.startswith(name))
  return int(line.split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
values = files.load(there, tensors, by_path)
import jax
jax.block_until_ready(values)
size = sum(x.nbytes for x in values.values())
print(json.dumps([before, status("VmHWM"), size]))
"""


@pytest.mark.skipif(
  not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc"
)
@pytest.mark.slow
def test_a_model_is_never_in_memory_twice(tmp_path):
  """200 MB in 12 layers: a second copy would make it two at the most.

  What comes on top of one, 0.1 to 0.2 in tries, are the tensors on their way
  and what the allocator holds.
  """
  fields = made_weights.config_json("llama_tied") | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "head_dim": 128,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
  }
  (tmp_path / "config.json").write_text(json.dumps(fields))
  model, _, tensors, _ = made_weights.model_of(tmp_path)
  assert model.width == 512
  arrays = {t.name: np.ones(t.shape, np.float32) for t in tensors}
  save_file(arrays, tmp_path / "model.safetensors")
  result = subprocess.run(
    [sys.executable, "-c", _MEASURE, str(tmp_path)],
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  before, most, size = json.loads(result.stdout)
  assert size > 200e6
  assert most - before < 1.5 * size, (before, most, size)


def _has_transformers() -> bool:
  result = subprocess.run(
    [_TORCH, "-c", "import torch, transformers"],
    capture_output=True,
    check=False,
  )
  return result.returncode == 0


_SHAPES = {
  "llama": {},
  "llama3": {"rope_scaling": "llama3", "rope_original_length": 16},
  "qwen3": {"qk_norm": True, "tied_embeddings": False},
  "neox": {
    "norm": "layer",
    "biases": True,
    "activation": "gelu_exact",
    "parallel_residual": True,
    "rotary_share": 0.5,
    "kv_heads": 4,
    "head_size": 4,
    "tied_embeddings": False,
  },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _SHAPES)
def test_transformers_computes_the_same_from_an_export(name, tmp_path):
  if not _has_transformers():
    pytest.skip(
      "needs torch and transformers: POISON_JAX_TRANSFORMERS_PYTHON may name a "
      "Python that has them (tests/oracles/huggingface.py says how to make one)"
    )
  import dataclasses

  from small_model import make_config

  model = dataclasses.replace(make_config().model, **_SHAPES[name])
  vocabulary = list(_VOCABULARIES.values())[len(name) % len(_VOCABULARIES)]()
  model = dataclasses.replace(model, embedding_rows=vocabulary.size + 3)
  decoder = Decoder(model, vocabulary.size)
  params = decoder.init(jax.random.key(3), np.zeros((1, 4), np.int32))["params"]
  params = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape),
    params,
  )
  _export(tmp_path / "exported", model, params, vocabulary)
  tokens_BL = np.random.default_rng(0).integers(3, vocabulary.size, (2, 20))
  texts = made_vocabularies.ODD + made_vocabularies.CORPUS[:9]
  asked = {"texts": texts, "tokens": tokens_BL.tolist()}
  (tmp_path / "asked.json").write_text(json.dumps(asked))
  script = pathlib.Path(__file__).parent / "oracles" / "loads.py"
  subprocess.run([_TORCH, str(script), str(tmp_path)], check=True)
  with np.load(tmp_path / "found.npz") as file:
    found = dict(file)
  hidden_BLD = decoder.apply({"params": params}, tokens_BL)
  logits_BLV = decoder.apply(
    {"params": params}, hidden_BLD, method=Decoder.unembed
  )
  np.testing.assert_allclose(logits_BLV, found["logits"], rtol=0, atol=1e-4)
  run = jax.jit(sampling_function(decoder, 12, 1e-6))
  lengths_P, numbers_P = np.array([20, 20]), np.arange(2)
  made = run(params, np.zeros(2, np.uint32), tokens_BL, lengths_P, numbers_P)
  np.testing.assert_array_equal(made.tokens_PT, found["greedy"])
  assert found["eos"] == vocabulary.eos_id
  ids = [vocabulary.encode(text).tolist() for text in texts]
  assert json.loads(str(found["ids"])) == ids
  assert json.loads(str(found["back"])) == [vocabulary.decode(i) for i in ids]


def _export(folder: pathlib.Path, model, params, vocabulary) -> None:
  folder.mkdir()
  config = architectures.write_config(
    model, rows=model.embedding_rows, length=64, eos_id=vocabulary.eos_id
  )
  (folder / "config.json").write_text(json.dumps(config))
  by_path = dict(checkpoints.flat(params))
  shapes = {path: x.shape for path, x in by_path.items()}
  tensors = layout.tensors(model, shapes)
  files.write(str(folder), tensors, by_path, largest=40_000)
  tokenizer_files.write(vocabulary, str(folder), texts=[], length=64)
