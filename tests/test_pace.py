"""A budget in time is held on a machine that was busy when the run began, or becomes so; and resumed runs keep what was decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pixelkiln.core.catalog import find
from pixelkiln.core.runs import Run
from pixelkiln.core.types import UserError
from pixelkiln.engine import plan as planning
from pixelkiln.engine.log import Log
from pixelkiln.engine.pace import Pace, profile
from pixelkiln.engine.session import Session
from pixelkiln.engine.train import Budget, Order, train
from pixelkiln.engine.watch import Watch
from pixelkiln.engine.where import Where

SLOWER = f"{Path(__file__).with_name('toys.py')}:slower"
HERE = Where("cpu", "fp32", False, torch.get_num_threads())
QUIET = Log(quiet=True)
TOLD = 0.15  # five timed steps say no more


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A method whose steps move the clock: a second each, and three in the second half of training."""
    found: Any = find(SLOWER)("tiny").last.method
    monkeypatch.setattr(planning.time, "perf_counter", lambda: found.clock)
    monkeypatch.setattr(found, "clock", 0.0)
    monkeypatch.setattr(found, "busy", 0.0)
    return found


def trained(out: Path, resume: bool = False) -> Run:
    return train(Order(SLOWER, "digits", out, "tiny", budget=Budget() if resume else Budget(seconds=400.0)), HERE, resume, QUIET)


def test_a_steady_machine_keeps_its_plan(tmp_path: Path, toy: Any) -> None:
    """Even though the first half takes half of what the mean step takes."""
    run = trained(tmp_path / "r")
    facts = run.read_recipe()
    assert "again" not in facts["plan"]
    assert facts["total"] == run.checkpoint().step
    assert toy.clock == pytest.approx(400, rel=TOLD)


@pytest.mark.parametrize("busy", [60.0, 80.0, 150.0])
def test_a_run_that_begins_on_a_busy_machine_gets_its_time(tmp_path: Path, toy: Any, busy: float) -> None:
    """Planned with steps of four times their length, it would end after a quarter of the time."""
    toy.busy = busy
    run = trained(tmp_path / "r")
    facts = run.read_recipe()
    assert facts["total"] == facts["plan"]["again"][-1]["total"] == run.checkpoint().step
    assert facts["plan"]["step_seconds"] == pytest.approx(8.0, rel=0.2)
    assert toy.clock == pytest.approx(400, rel=TOLD)
    assert len(run.samples()) >= 9
    records = run.records()
    assert [r["step"] for r in records] == sorted({r["step"] for r in records})


def test_a_machine_that_becomes_busy_takes_no_more_time(tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as slow from second 40 on: without another look it would take 1,400 seconds."""
    loss = toy.loss

    def slow(self: Any, batch: Any, moment: Any) -> Any:
        toy.busy = 1e9 if toy.clock > 40 else 0.0
        return loss(self, batch, moment)

    monkeypatch.setattr(toy, "loss", slow)
    run = trained(tmp_path / "r")
    assert run.read_recipe()["total"] == run.checkpoint().step
    assert toy.clock == pytest.approx(400, rel=TOLD)


def test_a_process_that_was_stopped_for_an_hour_keeps_its_plan(tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z, or a suspended job: counted as time, it would leave one more step."""
    step = Session.step

    def stopped(self: Session, k: int) -> None:
        toy.clock += 3600.0 if k == 20 else 0.0
        step(self, k)

    monkeypatch.setattr(Session, "step", stopped)
    run = trained(tmp_path / "r")
    assert "again" not in run.read_recipe()["plan"]
    assert toy.clock == pytest.approx(4000, rel=TOLD / 8)


def test_teaching_the_watch_its_classifier_costs_no_steps(tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first look takes longer than the whole budget; the plan never counted it."""
    looks: list[int] = []

    def look(self: Watch) -> dict[str, float]:
        toy.clock += 1.0 if looks else 600.0
        looks.append(1)
        return {}

    monkeypatch.setattr(Watch, "look", look)
    monkeypatch.setattr(Watch, "due", lambda self, step, every: step % every == 0)
    order = Order(SLOWER, "digits", tmp_path / "r", "tiny", budget=Budget(seconds=400.0), watch="warn")
    run = train(order, HERE, log=QUIET)
    assert len(looks) >= 9
    assert "again" not in run.read_recipe()["plan"]
    assert run.checkpoint().step == run.read_recipe()["plan"]["steps"]


def test_a_run_that_was_taken_back_is_not_slow() -> None:
    """200 steps of a second, back to 50, and on: the lost steps are no sign of a slow machine, but their time is gone."""
    pace = Pace(800.0, (1.0, 1.0, 1.0, 1.0))
    for k in range(1, 200):
        if pace.due(k, float(k)):
            assert pace.again(k, float(k), 800, 10) == 800
    pace.went_back()
    looks = [pace.again(k, k + 150.0, 800, 10) for k in range(51, 450) if pace.due(k, k + 150.0)]
    assert looks and all(abs(total - 650) < 10 for total in looks)


@pytest.mark.parametrize("killed", [2, 60], ids=["before the look", "after it"])
def test_resuming_keeps_what_was_decided(tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch, killed: int) -> None:
    toy.busy = 60.0
    whole = trained(tmp_path / "whole")
    decided = whole.read_recipe()["plan"]["again"]
    assert 2 < decided[0]["step"] < killed or killed == 2
    step = Session.step

    def dies(self: Session, k: int) -> None:
        if k == killed:
            raise KeyboardInterrupt
        step(self, k)

    toy.clock = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(Session, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "r")
    run = trained(tmp_path / "r", resume=True)
    facts = run.read_recipe()
    assert facts["total"] == run.checkpoint().step
    if killed == 60:
        assert facts["plan"] == whole.read_recipe()["plan"]
        mine, theirs = (r.checkpoint().tensors("weights") for r in (run, whole))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_profile_is_of_typical_steps() -> None:
    """One disturbed step in a quarter, or one with a penalty, does not count; a quarter without steps is as the others."""
    assert profile([(0.1, 1.0), (0.2, 9.0), (0.3, 1.0), (0.6, 2.0), (0.9, 2.0), (0.99, 2.0)]) == (1.0, 1.0, 2.0, 2.0)
    assert profile([(0.1, 3.0)]) == (3.0,) * 4


def test_means_over_parts_of_the_training() -> None:
    pace = Pace(100.0, (1.0, 1.0, 3.0, 3.0))
    assert [pace.mean(a, b) for a, b in ((0, 1), (0, 0.5), (0.5, 1), (0.25, 0.75), (0.6, 0.6))] == pytest.approx([2, 1, 3, 2, 3])


@pytest.mark.parametrize("plan", [
    {"pace": 3}, {"pace": {}}, {"pace": {"seconds": "x", "quarters": [1.0] * 4}}, {"pace": {"seconds": 9.0, "quarters": [1.0] * 3}},
    {"pace": {"seconds": 9.0, "quarters": [1.0, 1.0, 0.0, 1.0]}}, {"pace": {"seconds": -1.0, "quarters": [1.0] * 4}}])  # fmt: skip
def test_a_damaged_pace_is_one_line(plan: Any) -> None:
    with pytest.raises(UserError, match=r"recipe.json: plan\.pace"):
        Pace.of(plan)


@pytest.mark.parametrize("plan", [None, 3, {}, {"by": "steps"}])
def test_runs_without_a_time_have_no_pace(plan: Any) -> None:
    assert Pace.of(plan) is None
