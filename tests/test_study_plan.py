"""study.json: what was stated stays, cells may be added."""

import dataclasses
import json

import pytest
from small_study import make_plan

from poison_jax.data.folder import Folder
from poison_jax.errors import UserError
from poison_jax.studies.grid import plan as plan_lib
from poison_jax.studies.grid.axes import axis
from poison_jax.training import workdir as workdir_lib


@pytest.fixture(name="folder", params=["disk", "bucket"])
def _folder(request, tmp_path):
  # TensorStore's memory stands in for the bucket; test_claims.py has another.
  bucket = f"memory://{tmp_path.name}/study"
  return bucket if request.param == "bucket" else f"{tmp_path}/study"


def test_a_folder_gives_its_study_back(folder):
  plan = make_plan(folder)
  plan_lib.write(plan)
  found = plan_lib.read(folder)
  assert found == plan and len(found.cells) == 4
  assert [c.label for c in found.cells] == [
    "seed=0 poisons=0", "seed=0 poisons=4",
    "seed=1 poisons=0", "seed=1 poisons=4",
  ]  # fmt: skip


def test_values_that_are_tuples_come_back_as_tuples(folder):
  cells = ("<NEAR>",), ("<NEARER>",)
  grid = axis("evaluation.near_triggers", *cells)
  plan = make_plan(folder, grid=grid)
  plan_lib.write(plan)
  assert plan_lib.read(folder) == plan


def test_the_same_study_again_writes_nothing(folder, monkeypatch):
  plan_lib.write(make_plan(folder))
  monkeypatch.setattr(Folder, "write", None)
  plan_lib.write(make_plan(folder))


def test_cells_can_be_added_and_not_taken_away(folder):
  plan_lib.write(make_plan(folder))
  more = make_plan(folder, doses=(0, 2, 4))
  plan_lib.write(more)
  assert plan_lib.read(folder) == more
  with pytest.raises(
    UserError, match="2 cell.s. that the study has no more, .*'seed=0 poisons=2"
  ):
    plan_lib.write(make_plan(folder))
  assert plan_lib.read(folder) == more


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"margin": 0.4}, "margin was stated as 0.25 before its runs, .* 0.4 now"),
    ({"question": "Is it?"}, "question was stated as 'Does it"),
    ({"name": "other"}, "name was stated as 'small'"),
  ],
)
def test_what_was_stated_before_the_runs_stays(folder, changes, says):
  plan_lib.write(make_plan(folder))
  with pytest.raises(UserError, match=says):
    plan_lib.write(make_plan(folder, **changes))
  assert plan_lib.read(folder) == make_plan(folder)


def test_where_and_how_dear_may_change(folder):
  plan_lib.write(make_plan(folder))
  plan_lib.write(make_plan(folder, topology="h100:1", mfu=0.5))


def test_a_folder_of_something_else_is_left_alone(folder):
  with pytest.raises(UserError, match=r"holds no study, study.json is missing"):
    plan_lib.read(folder)
  Folder(folder).write("thesis.tex", b"...")
  with pytest.raises(UserError, match="is not empty and holds no study"):
    plan_lib.write(make_plan(folder))
  assert Folder(folder).names() == ["thesis.tex"]


def _damage(change):
  def damaged(content: bytes) -> bytes:
    tree = json.loads(content)
    change(tree)
    return json.dumps(tree).encode()

  return damaged


@pytest.mark.parametrize(
  ("damage", "says"),
  [
    (lambda content: content[:-9], "is damaged"),
    (lambda content: b"[]", "is damaged"),
    (lambda content: b"\xff", "is damaged"),
    (_damage(lambda t: t.pop("margin")), "is damaged: KeyError..margin"),
    (_damage(lambda t: t.update(format=9)), "has format 9; this code reads 1"),
    (
      _damage(lambda t: t["cells"][1]["config"].update(seed=9)),
      "is not its configuration's hash",
    ),
    (
      _damage(lambda t: t["cells"][1]["config"].update(speed=9)),
      "study.json: unknown config key 'config.speed'",
    ),
    (_damage(lambda t: t["cells"][1].pop("settings")), "is damaged"),
    (_damage(lambda t: t["cells"][1].update(settings=None)), "is damaged"),
    (_damage(lambda t: t.update(question=None)), "damaged: .*question is None"),
    (_damage(lambda t: t.update(margin="0.25")), "margin is '0.25', of type"),
    (_damage(lambda t: t.update(margin=0.5)), "margin is 0.5; .*less than 0.5"),
    (_damage(lambda t: t.update(margin=float("nan"))), "margin is nan"),
    (_damage(lambda t: t.update(triage={"spared": []})), "is damaged"),
    (
      _damage(
        lambda t: t.update(
          triage={
            "rule": {
              "success_after": 0.5,
              "success_above": 1.0,
              "failure_after": 0.9,
              "failure_poisons": 0.9,
              "failure_below": 0.1,
              "consecutive": 2.5,
            },
            "spared": [],
          }
        )
      ),
      "is damaged: the study's triage.rule.consecutive is 2.5, of type float",
    ),
  ],
)
def test_a_damaged_file_is_one_line_and_stays_as_it_is(folder, damage, says):
  plan = make_plan(folder)
  plan_lib.write(plan)
  damaged = damage(Folder(folder).read(plan_lib.FILE))
  Folder(folder).write(plan_lib.FILE, damaged)
  for act in (lambda: plan_lib.read(folder), lambda: plan_lib.write(plan)):
    with pytest.raises(UserError, match=says) as error:
      act()
    assert "study.json" in str(error.value) and "\n" not in str(error.value)
  assert Folder(folder).read(plan_lib.FILE) == damaged


def test_a_cell_gets_its_config_once(folder):
  plan = make_plan(folder)
  cell = plan.cells[1]
  plan_lib.write_config(plan, cell)
  found = workdir_lib.load_config(plan.path(cell))
  assert found == cell.config and found.poison.count == 4
  # As a run that goes on has it: of other fields that it may choose.
  changed = dataclasses.replace(
    found, checkpoint=dataclasses.replace(found.checkpoint, every=99)
  )
  workdir_lib.write_config(plan.path(cell), changed)
  plan_lib.write_config(plan, cell)
  assert workdir_lib.load_config(plan.path(cell)) == changed
