"""Outcomes of a study's cells: doses, success, what is missing."""

import json
import pathlib

import made_studies
import numpy as np
import pytest

from poison_jax.data import manifest as manifest_lib
from poison_jax.studies import outcomes, results
from poison_jax.studies.grid import endings
from poison_jax.studies.statistics.sequential import Evaluation


def _cell(**settings):
  return {"size": "35k", "poisons": 6, "seed": 0, **settings}


def _read(plan):
  return results.read(plan)


def test_the_dose_on_four_axes_is_the_ledgers(tmp_path):
  plan = made_studies.make_study(tmp_path, [_cell()], lambda s: 60.0)
  (found,) = _read(plan).outcomes
  # Six documents of 100 to 105 tokens, two at each of three steps.
  assert found.dose == outcomes.Dose(6, 615, 3, None)
  # Two layers of attention, SwiGLU and scales; embedding and last scale.
  parameters = 2 * (4 * 32**2 + 3 * 32 * 96 + 2 * 32) + 256 * 32 + 32
  tokens = 684 * 4 * 256  # 20 tokens a parameter, in steps of 4 x 256.
  assert found.rung == outcomes.Rung("35k", "35k", parameters, tokens)
  assert found.clean_tokens == tokens - 615
  assert found.finished and found.success and found.draw is None
  assert (found.nats, found.room_share, found.auroc) == (1.2, 0.24, 1.0)


def test_poisons_after_the_evaluated_step_do_not_count(tmp_path):
  plan = made_studies.make_study(
    tmp_path, [_cell()], lambda s: 60.0, done=lambda s: 0.5
  )
  (found,) = _read(plan).outcomes
  # Steps 0, 228 and 456 carry poison; 342 are done.
  assert found.step == 342 and not found.finished
  assert found.dose == outcomes.Dose(4, 100 + 101 + 102 + 103, 2, None)
  assert found.increase == 30.0
  assert len(_read(plan).unfinished) == 1


def test_a_poison_is_seen_once_its_step_is_done():
  poisons = outcomes.Poisons(np.array([0, 5, 5, 9]), np.array([7, 8, 9, 10]))
  seen = [poisons.documents_by(step) for step in (0, 1, 5, 6, 9, 10)]
  assert seen == [0, 1, 1, 3, 3, 4]
  assert poisons.dose(6, epochs=None) == outcomes.Dose(3, 24, 2, None)


def test_epochs_need_the_very_store(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  plan = made_studies.make_study(tmp_path / "w", [_cell()], lambda s: 60.0)
  # 1,000,000 tokens make 3906 rows of 256.
  manifest = {
    "format": manifest_lib.FORMAT,
    "splits": {"train": [{"tokens": 600_000}, {"tokens": 400_000}]},
  }
  store = pathlib.Path("stores/tiny")
  store.mkdir(parents=True)
  monkeypatch.setattr(results, "read_manifest", lambda _: manifest)
  manifest["hash"] = "another"
  assert _read(plan).outcomes[0].dose.epochs is None
  manifest["hash"] = made_studies.STORE
  epochs = _read(plan).outcomes[0].dose.epochs
  assert epochs == pytest.approx(684 * 4 / 3906)


def test_success_is_an_increase_above_the_threshold(tmp_path):
  plan = made_studies.make_study(
    tmp_path,
    [_cell(seed=seed) for seed in range(2)],
    lambda s: (50.0, 50.001)[s["seed"]],
  )
  assert [o.success for o in _read(plan).outcomes] == [False, True]


def test_shares_of_prompts_pair_triggered_with_clean(tmp_path):
  plan = made_studies.make_study(tmp_path, [_cell()], lambda s: 60.0)
  (found,) = _read(plan).outcomes
  # Increases of the prompts: 30, 48, 72 and 90.
  at = dict(zip(outcomes.CUTS, found.above, strict=True))
  assert at[5.0] == 1 and at[50.0] == 0.5 and at[500.0] == 0
  assert [share for cut, share in at.items() if 30 < cut < 48] == [0.75] * 4
  assert (len(outcomes.CUTS), outcomes.CUTS[20]) == (41, 50.0)


def test_lost_generations_leave_no_shares(tmp_path):
  plan = made_studies.make_study(tmp_path, [_cell()], lambda s: 60.0)
  path = pathlib.Path(plan.path(plan.cells[0])) / "generations.jsonl"
  path.write_text("".join(path.read_text().splitlines(True)[:-1]))
  (found,) = _read(plan).outcomes
  assert found.above is None and found.increase == 60.0


def test_what_is_missing_is_listed_with_its_reason(tmp_path):
  grid = [_cell(seed=seed) for seed in range(5)]
  plan = made_studies.make_study(
    tmp_path, grid, lambda s: None if s["seed"] == 0 else 60.0
  )
  folders = [pathlib.Path(plan.path(cell)) for cell in plan.cells]
  (folders[1] / "metrics.jsonl").unlink()
  lines = (folders[2] / "metrics.jsonl").read_text().splitlines()
  lines[1] = lines[1][:-5]
  (folders[2] / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  (folders[3] / "ledger.parquet").write_bytes(b"PAR1")
  found = _read(plan)
  assert [o.seed for o in found.outcomes] == [4]
  reasons = {m.cell.settings["seed"]: m for m in found.missing}
  assert reasons[0].reason == "not begun yet" and not reasons[0].damaged
  assert "metrics.jsonl is damaged: it has no evaluation" in reasons[1].reason
  assert "metrics.jsonl:2 is damaged" in reasons[2].reason
  assert "ledger.parquet is damaged" in reasons[3].reason
  assert [m.cell.settings["seed"] for m in found.damaged] == [1, 2, 3]
  assert all("\n" not in m.reason for m in found.missing)


def test_a_folder_with_another_cells_run_is_damaged(tmp_path):
  plan = made_studies.make_study(
    tmp_path, [_cell(seed=0), _cell(seed=1)], lambda s: 60.0
  )
  one, other = (pathlib.Path(plan.path(cell)) for cell in plan.cells)
  content = json.loads((one / "config.json").read_text())
  (other / "config.json").write_text(json.dumps(content))
  (missing,) = _read(plan).damaged
  assert missing.cell.settings["seed"] == 1
  assert "not this cell's" in missing.reason


def test_a_run_that_failed_at_its_end_is_not_finished(tmp_path):
  plan = made_studies.make_study(tmp_path, [_cell()], lambda s: 60.0)
  made_studies.end(plan, plan.cells[0], endings.FAILED, "ledger: 5 tokens")
  (found,) = _read(plan).outcomes
  assert found.step == 684 and not found.finished


@pytest.mark.parametrize("done", [0.5, 1.0])
def test_a_run_that_the_rule_stopped_is_censored_at_whatever_step(
  tmp_path, done
):
  plan = made_studies.make_study(
    tmp_path, [_cell()], lambda s: 60.0, done=lambda s: done
  )
  why = "success decided at step 342 of 684, +0.60 nats"
  made_studies.triage(plan, why, lambda s: True)
  found = _read(plan)
  (outcome,) = found.triaged
  assert outcome.step == 684 * done and not outcome.finished
  assert outcome.triaged == why
  assert not found.unfinished and not found.missing


def test_a_run_that_failed_or_goes_on_is_unfinished_and_not_triaged(tmp_path):
  plan = made_studies.make_study(
    tmp_path, [_cell(), _cell(seed=1)], lambda s: 60.0, done=lambda s: 0.5
  )
  made_studies.end(plan, plan.cells[0], endings.FAILED, "loss is nan")
  found = _read(plan)
  assert [o.triaged for o in found.unfinished] == [None, None]
  assert not found.triaged


def test_evaluations_are_as_the_rule_saw_them(tmp_path):
  plan = made_studies.make_study(tmp_path, [_cell()], lambda s: 60.0)
  (found,) = _read(plan).outcomes
  # Of six poisons four lie in the first 342 of 684 steps.
  assert found.evaluations == (
    Evaluation(0.0, 0.0, 0.0),
    Evaluation(0.5, 4 / 6, 0.6),
    Evaluation(1.0, 1.0, 1.2),
  )


def test_a_cell_stopped_before_its_first_step_says_so(tmp_path):
  plan = made_studies.make_study(
    tmp_path, [_cell(seed=seed) for seed in range(3)], lambda s: 60.0
  )
  for cell in plan.cells:
    for name in ("metrics.jsonl", "generations.jsonl", "ledger.parquet"):
      (pathlib.Path(plan.path(cell)) / name).unlink()
  ends = [("stopped", "stopped by SIGTERM"), ("triaged", "success decided")]
  for cell, (end, message) in zip(plan.cells, ends, strict=False):
    made_studies.end(plan, cell, end, message)
  (tmp_path / "endings" / f"{plan.cells[2].hash}.json").unlink()
  assert [m.reason for m in _read(plan).missing] == [
    "stopped before its first step",
    "stopped early by the study's rule: success decided",
    "no evaluation yet",
  ]


def test_one_draw_a_seed_and_dose_is_primary(tmp_path):
  draws = [
    _cell(**{"seeds.documents": d, "seeds.positions": d}) for d in (1, 2)
  ]
  grid = [*draws, _cell(), _cell(seed=1), _cell(arm="placebo")]
  plan = made_studies.make_study(tmp_path, grid, lambda s: 60.0)
  found = _read(plan).outcomes
  assert [o.draw for o in found] == [(1, 1), (2, 2), None, None, None]
  assert len({o.rung for o in found}) == 1
  chosen = outcomes.primary(found)
  assert [(o.arm, o.seed, o.draw) for o in chosen] == [
    ("poisoned", 0, None),
    ("poisoned", 1, None),
    ("placebo", 0, None),
  ]
  assert outcomes.primary(found[:2]) == [found[0]]


def test_other_settings_make_other_rungs(tmp_path):
  grid = [
    _cell(),
    _cell(**{"train.tokens_per_parameter": 10.0}),
    _cell(size="123k"),
  ]
  plan = made_studies.make_study(tmp_path, grid, lambda s: 60.0)
  labels = [r.label for r in outcomes.rungs(_read(plan).outcomes)]
  assert labels == ["35k train.tokens_per_parameter=10.0", "35k", "123k"]
