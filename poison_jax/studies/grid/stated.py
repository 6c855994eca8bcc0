"""Checks of what a study states: types, and values that can't be.

The same for a study's file and for the `study.json` that was made of it.
"""

import collections.abc
import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from poison_jax.errors import UserError
from poison_jax.studies.grid.axes import Grid, Settings
from poison_jax.studies.statistics import margins

# What a field of a type must be, in words.
_WORDS = {
  str: "a text",
  int: "a whole number",
  float: "a finite number",
  Settings: 'values by name, like {"size": "35k"}',
  Grid: "a grid, as axis() and product() make it",
}


def check(stated: Any, *, fields: Iterable[str]) -> None:
  """Checks fields of a dataclass by its annotations, and a margin's range.

  Args:
    stated: a `Study`, or the `Plan` of one.
    fields: names of those that are checked.

  Raises:
    UserError: names the field, and says what would be right.
  """
  hints = typing.get_type_hints(type(stated))
  for name in fields:
    _check_type(getattr(stated, name), hints[name], f"the study's {name}")
    if name == "margin" and not margins.LEAST < stated.margin < margins.MOST:
      raise UserError(
        f"the study's margin is {stated.margin}; it must be more than "
        f"{margins.LEAST:g} and less than {margins.MOST:g}"
      )


def _check_type(value: Any, hint: Any, what: str) -> None:
  """Raises UserError where `value`, named `what`, isn't what `hint` says."""
  if isinstance(hint, types.UnionType):  # Something or None.
    if value is None:
      return
    hint = typing.get_args(hint)[0]
  if dataclasses.is_dataclass(hint):
    _require(isinstance(value, hint), value, what, f"a {hint.__name__}")
    for name, inner in typing.get_type_hints(hint).items():
      _check_type(getattr(value, name), inner, f"{what}.{name}")
  elif typing.get_origin(hint) is collections.abc.Callable:
    _require(callable(value), value, what, "a function")
  elif hint == Grid:
    _require(isinstance(value, tuple), value, what, _WORDS[Grid])
    for settings in value:
      _check_type(settings, Settings, f"a cell of {what}")
  elif hint == Settings:
    _require(isinstance(value, Mapping), value, what, _WORDS[Settings])
    _check_settings(value, what)
  elif hint is float:
    is_number = type(value) is int or isinstance(value, float)
    right = is_number and math.isfinite(value)
    _require(right, value, what, _WORDS[float])
  else:
    right = isinstance(value, hint) and not isinstance(value, bool)
    _require(right, value, what, _WORDS[hint])


def _check_settings(settings: Mapping[Any, Any], what: str) -> None:
  for name, value in settings.items():
    _require(isinstance(name, str), name, f"a name in {what}", _WORDS[str])
    values = value if isinstance(value, tuple) else (value,)
    plain = all(type(v) in (str, int, float, bool, type(None)) for v in values)
    _require(
      plain,
      value,
      f"{name} in {what}",
      "a text, a number of Python's own, True, False, None, or a tuple of them",
    )


def _require(condition: bool, value: Any, what: str, right: str) -> None:
  if not condition:
    raise UserError(
      f"{what} is {reprlib.repr(value)}, of type {type(value).__name__}; it "
      f"must be {right}"
    )
