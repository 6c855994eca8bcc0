"""The entry of every command: exit codes and one line an error."""

import subprocess
import sys
import textwrap

import pytest

_COMMAND = '''
"""Tries the entry.

Usage: try --config=FILE
"""
import os, sys
from absl import flags
from poison_jax import command, errors
_CONFIG = command.define_config()
_OUT = flags.DEFINE_string("out", None, "Where to.")
_N = flags.DEFINE_integer("n", 0, "A number.")
def main(arguments):
  config = command.load_config(_CONFIG)
  match arguments:
    case ["check"]: raise errors.CheckFailed("check\\nfailed")
    case ["nan"]: raise errors.NotFinite("loss")
    case ["stop"]: raise errors.Stopped("saved")
    case ["folder"]: os.makedirs(__file__ + "/x")
    case ["file"]: os.makedirs(__file__, exist_ok=True)
    case ["t"]: return print(config.corpus.tags)
    case ["disk"]: raise OSError(28, "No space left on device", "/x/y")
    case ["memory"]: raise MemoryError("Unable to allocate 9 GiB")
    case ["device"]: raise RuntimeError("INTERNAL: Out of memory allocating 9")
    case ["bug"]: raise RuntimeError("a bug")
  print(arguments, _OUT.value, config and config.poison.count)
if __name__ == "__main__":
  command.run(main)
'''


@pytest.fixture(name="call", scope="module")
def _call(tmp_path_factory):
  folder = tmp_path_factory.mktemp("command")
  (folder / "try.py").write_text(_COMMAND)
  (folder / "broken.py").write_text("def get_config():\n  return nothing\n")
  (folder / "dict.py").write_text("def get_config():\n  return {'a': 1}\n")
  (folder / "syntax.py").write_text("\ndef get_config(:\n  return 1\n")
  (folder / "nothing.py").write_text("x = 1\n")
  (folder / "config.json").write_text("{}")
  (folder / "misspelt.py").write_text(
    textwrap.dedent("""\
      from configs import base
      def get_config():
        c = base.get_config()
        c.poison.cuont = 3
        return c
      """)
  )

  def call(*arguments):
    arguments = [a.replace("FOLDER", str(folder)) for a in arguments]
    code = (
      "import sys, runpy; sys.path.insert(0, '.');"
      f"sys.argv = {['try', *arguments]!r};"
      f"runpy.run_path({str(folder / 'try.py')!r}, run_name='__main__')"
    )
    result = subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    result.stderr = result.stderr.replace(str(folder), "FOLDER")
    return result

  return call


@pytest.mark.parametrize(
  ("arguments", "code", "message"),
  [
    (["--nope"], 2, "Unknown command line flag 'nope'"),
    (["--n=x"], 2, "flag --n=x"),
    (["--config=configs/nope.py"], 2, "no such file"),
    (["--config"], 2, "no such file"),
    (["--config=FOLDER/broken.py"], 2, "name 'nothing' is not defined"),
    (["--config=FOLDER/syntax.py"], 2, "invalid syntax (FOLDER/syntax.py:2)"),
    (["--config=FOLDER/nothing.py"], 2, "it defines no function get_config()"),
    (["--config=FOLDER/config.json"], 2, "config.json: not a Python file"),
    (["--config=FOLDER/misspelt.py"], 2, "did you mean"),
    (["--config=FOLDER/dict.py"], 2, "must return a ConfigDict, not a dict"),
    (["--config=configs/base.py:a=1"], 2, "takes no arguments"),
    (["--config=configs/tiny.py:a=1"], 2, "config argument 'a=1'"),
    (
      ["--config=configs/tiny.py", "--config.poison.cuont=3"],
      2,
      "unknown config key 'config.poison.cuont' (did you mean",
    ),
    (["--config=configs/tiny.py", "--config.poison.count=x"], 2, "invalid"),
    (["--config.poison.count=3"], 2, "overrides a field of --config"),
    (["check"], 3, "check failed"),
    (["nan"], 4, "loss"),
    (["stop"], 75, "saved"),
    (["disk"], 2, "No space left on device: /x/y"),
    (["file"], 2, "File exists: FOLDER/try.py (a file, where a folder is"),
    (["folder"], 2, "Not a directory: FOLDER/try.py/x (a file, where a folder"),
    (["memory"], 2, "not enough memory (Unable to allocate 9 GiB)"),
    (["device"], 2, "not enough memory (INTERNAL: Out of memory allocating 9)"),
    (
      ["--config=configs/tiny.py", "--config.corpus.tags=a,b"],
      2,
      "--config.corpus.tags=a,b: quotes are missing",
    ),
    (
      ["--config=configs/tiny.py", "--config.corpus.tags", "a,b"],
      2,
      "--config.corpus.tags=a,b: quotes are missing",
    ),
  ],
)
def test_an_error_is_one_line_and_its_exit_code(call, arguments, code, message):
  result = call(*arguments)
  assert result.returncode == code, result.stderr
  assert message in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
  assert result.stderr.startswith("error: ")
  assert result.stdout == ""


def test_flags_may_stand_before_and_after_the_arguments(call):
  result = call("--config=configs/tiny.py:poisons=5", "a", "b", "--out=x", "c")
  assert result.stdout == "['a', 'b', 'c'] x 5\n", result.stderr
  assert result.returncode == 0


@pytest.mark.parametrize(
  ("given", "tags"),
  [("('a','b')", ("a", "b")), ("a", ("a",)), ("'a,b'", ("a,b",)), ("()", ())],
)
def test_a_tuple_of_strings_is_written_as_python_writes_it(call, given, tags):
  result = call(
    "--config=configs/tiny.py", f"--config.corpus.tags={given}", "t"
  )
  assert result.stdout == f"{tags}\n", result.stderr


def test_help_exits_zero_and_names_the_flags(call):
  result = call("--help")
  assert result.returncode == 0
  assert "Usage: try" in result.stdout and "--out" in result.stdout
  assert "--config: Configuration file" in result.stdout


def test_a_bug_of_ours_keeps_its_traceback(call):
  result = call("bug")
  assert result.returncode == 1
  assert "Traceback" in result.stderr
