"""The watch on collapse: its numbers against other libraries, its verdicts, and rollbacks that survive a kill at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from pixelkiln.core.catalog import builtin
from pixelkiln.core.protocols import Method
from pixelkiln.core.runs import Run
from pixelkiln.core.types import Moment, UserError
from pixelkiln.data import Feed, ImageSet, open_source
from pixelkiln.engine import watch
from pixelkiln.engine.build import make
from pixelkiln.engine.log import Log
from pixelkiln.engine.loop import Trainer
from pixelkiln.engine.session import Session
from pixelkiln.engine.train import Budget, Order, train
from pixelkiln.engine.watch import DRAWN, State, Watch, chosen
from pixelkiln.engine.where import Where

TOY = f"{Path(__file__).with_name('toys.py')}:collapsing"
HERE = Where("cpu", "fp32", False, 1)
SPEED = {"images_per_s", "idle", "seconds"}


class Lines(Log):
    """Remembers what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Killed(BaseException):
    """As SIGKILL: nothing that follows is done."""


@pytest.fixture(autouse=True)
def no_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether one is in the cache must not decide what is tested."""
    monkeypatch.setattr(watch, "is_kept", lambda data: False)


def toy(out: Path, mode: str = "rollback", **changes: str) -> Order:
    return Order(TOY, "digits", out, "tiny", changes=changes, watch=mode)  # type: ignore[arg-type]


def left(out: Path) -> dict[str, Any]:
    """All tensors, grids and lines that a run left, but for its speed."""
    run = Run(out)
    point = run.checkpoint()
    tensors = {g: point.tensors(g) for g in ("weights", "average", "optim")}
    log = [{k: v for k, v in json.loads(line).items() if k not in SPEED} for line in run.metrics_file.read_text().splitlines()]
    state = {k: v for k, v in point.state.items() if k not in SPEED}
    return {"tensors": tensors, "log": log, "state": state, "grids": {p.name: p.read_bytes() for p in run.samples()}}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


# ---- rollbacks


def test_a_collapse_is_warned_of_once_and_training_goes_on(tmp_path: Path) -> None:
    log = Lines()
    run = train(toy(tmp_path / "r", "warn"), HERE, log=log)
    told = [line for line in log.lines if line.startswith("warning")]
    assert len(told) == 1
    assert "variety is being lost" in told[0] and "--train.opts.main.lr" in told[0] and "--watch rollback" in told[0]
    assert run.checkpoint().step == 250
    seen = {r["step"]: r["watch/coverage"] for r in run.records() if "watch/coverage" in r}
    assert set(seen) == {50, 100, 150, 200, 250}
    assert seen[50] > 0.5 and seen[100] < 0.05
    assert not any("rollback" in r for r in run.records())


def test_a_collapse_is_taken_back_to_where_all_was_well_at_half_the_rate(tmp_path: Path) -> None:
    log = Lines()
    run = train(toy(tmp_path / "r"), HERE, log=log)
    records = run.records()
    back = [r for r in records if "rollback" in r]
    assert back == [{"step": 100, "rollback": 50, "lr_factor": 0.5}]
    assert [line for line in log.lines if "Back to step 50, with 0.5 of the learning rates" in line]
    assert not [line for line in log.lines if line.startswith("warning")]
    first = {r["step"]: r for r in records if "luck" in r and "rollbacks" not in r}
    second = {r["step"]: r for r in records if "luck" in r and r.get("rollbacks") == 1}
    assert set(first) == {25, 50, 75, 100} and set(second) == set(range(75, 251, 25))  # what was tried stays in the log
    assert first[75]["luck"] != second[75]["luck"] and first[100]["luck"] != second[100]["luck"], "other random numbers"
    assert all(r["watch/coverage"] > 0.5 for r in records if r["step"] > 100 and "watch/coverage" in r)
    # descent on a parabola: w - 1 is multiplied by 1 - 2.09 for 50 steps, then by 1 - 1.045 for 200
    weight = float(run.checkpoint().tensors("weights")["net.weight"])
    assert weight == pytest.approx(1, abs=1e-5)
    assert run.checkpoint().state["watch"]["rollbacks"] == 1


def test_what_cannot_be_mended_is_tried_three_times(tmp_path: Path) -> None:
    log = Lines()
    run = train(toy(tmp_path / "r", **{"model.always": "true"}), HERE, log=log)
    back = [r for r in run.records() if "rollback" in r]
    assert [r["lr_factor"] for r in back] == [0.5, 0.25, 0.125]
    assert [(r["step"], r["rollback"]) for r in back] == [(100, 50)] * 3
    told = [line for line in log.lines if line.startswith("warning")]
    assert len(told) == 1 and "has been tried" in told[0]
    assert run.checkpoint().step == 250


def test_a_checkpoint_that_is_gone_is_not_gone_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "verify", lambda self, path: "damaged")
    log = Lines()
    run = train(toy(tmp_path / "r"), HERE, log=log)
    assert not any("rollback" in r for r in run.records())
    assert [line for line in log.lines if line.startswith("warning")]


def dying(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, after: bool) -> None:
    """The n-th call of a method is the last thing that happens, or does not happen."""
    real, count = getattr(owner, name), [0]

    def hook(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == at and not after:
            raise Killed
        found = real(*args, **kwargs)
        if count[0] == at:
            raise Killed
        return found

    monkeypatch.setattr(owner, name, hook)


POINTS = [(Trainer, "step", n) for n in (1, 40, 55, 95, 100, 101, 130, 151, 290)]
POINTS += [(Run, "append", n) for n in (3, 5, 6, 7, 8, 9, 10, 14)]
POINTS += [(Run, "save", n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 12)]
POINTS += [(Run, "_stage", 4), (Run, "_stage", 6), (Session, "back", 1), (Run, "forget", 1), (Trainer, "retry", 1), (Trainer, "restore", 1), (Session, "watched", 2)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("unbroken") / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "is_kept", lambda data: False)
        train(toy(out), HERE, log=Lines())
    return left(out)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("point", POINTS, ids=lambda p: f"{p[0].__name__}.{p[1]}-{p[2]}")
def test_a_kill_at_any_moment_changes_nothing(point: tuple[Any, str, int], after: bool, unbroken: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, *point, after)
        with pytest.raises(Killed):
            train(toy(tmp_path / "r"), HERE, log=Lines())
    train(toy(tmp_path / "r"), HERE, resume=True, log=Lines())
    found = left(tmp_path / "r")
    for part in unbroken:
        assert same(found[part], unbroken[part]), part


def test_two_kills_and_a_checkpoint_that_is_damaged_in_between(unbroken: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "r"
    for name, number in (("step", 97), ("step", 60)):
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, Trainer, name, number, False)
            with pytest.raises(Killed):
                train(toy(out), HERE, resume=out.exists(), log=Lines())
        newest = Run(out).points()[-1]
        (newest / "weights.safetensors").write_bytes(b"nothing")
    train(toy(out), HERE, resume=True, log=Lines())
    assert all(same(found, unbroken[part]) for part, found in left(out).items())


def test_what_was_saved_at_a_healthy_step_stays_until_there_is_a_newer_one(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, Trainer, "step", 100, False)
        with pytest.raises(Killed):
            train(toy(tmp_path / "r", **{"train.save_every": "10"}), HERE, log=Lines())
    assert [int(p.name[5:]) for p in Run(tmp_path / "r").points()] == [50, 80, 90]


def test_a_resumed_run_keeps_its_mode(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        dying(patch, Trainer, "step", 55, False)
        with pytest.raises(Killed):
            train(toy(tmp_path / "r"), HERE, log=Lines())
    with pytest.raises(UserError, match="begun with other options"):
        train(toy(tmp_path / "r", "off"), HERE, resume=True, log=Lines())
    run = train(toy(tmp_path / "r", "auto"), HERE, resume=True, log=Lines())
    assert [r["rollback"] for r in run.records() if "rollback" in r] == [50]


# ---- a healthy run


def test_a_healthy_run_is_the_same_with_and_without_a_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm, an average, two optimizers and a sampler with statistics of its own."""
    monkeypatch.setattr(watch, "SHARE", 1.0)
    monkeypatch.setattr(watch, "LONG", 2.0)  # in so few steps D always wins
    found = {}
    for mode in ("off", "warn", "rollback"):
        order = Order("dcgan", "digits", tmp_path / mode, "tiny", Budget(steps=48), watch=mode, changes={"train.log_every": "8"})  # type: ignore[arg-type]
        train(order, HERE, log=Lines())
        found[mode] = left(tmp_path / mode)
    for mode in ("warn", "rollback"):
        assert same(found[mode]["tensors"], found["off"]["tensors"])
        assert found[mode]["grids"] == found["off"]["grids"]
        plain = [{k: v for k, v in r.items() if not k.startswith("watch/")} for r in found[mode]["log"]]
        assert [r for r in plain if len(r) > 1] == found["off"]["log"]
        looks = [r for r in found[mode]["log"] if "watch/coverage" in r]
        assert len(looks) >= 3
        assert all({"watch/d/grad_norm", "watch/g/grad_norm"} <= r.keys() for r in found[mode]["log"] if "d/loss" in r)


def test_short_runs_are_not_looked_at() -> None:
    of = lambda total, batch: Watch("warn", None, SET, total, batch, HERE)  # type: ignore[arg-type]
    assert not any(of(200, 32).due(k, 20) for k in range(1, 201))
    due = [k for k in range(1, 10_001) if of(10_000, 64).due(k, 1000)]
    assert due == list(range(1000, 10_001, 1000))
    due = [k for k in range(1, 10_001) if of(10_000, 64).due(k, 30)]
    assert due[0] == 420 and due[1] == 840 and due[-1] == 10_000, "420 steps of 64 are 26,880 images, of which 256 are less than a hundredth"


# ---- numbers


SET = ImageSet(torch.randint(0, 256, (600, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
               torch.arange(600) % 4, ("a", "b", "c", "d"), name="toy")


class Corner:
    """Features are two pixels; the class is given by the first."""

    def features(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :2].float() / 255

    def probabilities(self, features: Tensor) -> Tensor:
        return torch.nn.functional.one_hot((features[:, 0] * 3.999).long(), 4).float()


class Drawing(Method):
    """Draws the images that it is told to."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(SET.info)
        self.images = images

    def draw(self, request: Any) -> Tensor:
        return self.images[: len(request.seeds)]


def test_modes_divergence_and_coverage_are_those_of_their_definitions() -> None:
    gen = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (DRAWN, 1, 8, 8), dtype=torch.uint8, generator=gen)
    pixels[:, 0, 0, 0] //= 2  # the darker half: two of four classes
    looked = Watch("warn", Drawing(pixels.float() / 127.5 - 1), SET, 1000, 64, HERE, Corner)  # type: ignore[arg-type]
    seen = looked.look()
    classes = (pixels[:, 0, 0, 0].numpy() / 255 * 3.999).astype(int)
    share = np.bincount(classes, minlength=4) / DRAWN
    assert seen["watch/modes"] == len(set(classes)) == 2
    assert seen["watch/kl"] == pytest.approx(scipy.stats.entropy(share, np.full(4, 0.25)), abs=1e-6)
    real, fake = looked.real.double().numpy(), pixels[:, 0, 0, :2].double().numpy() / 255  # type: ignore[union-attr]
    between = np.linalg.norm(real[:, None] - fake[None], axis=2)
    own = lambda x: np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, 5]  # the first is itself
    eps = 1e-6  # features are float32
    assert seen["watch/coverage"] == pytest.approx((between <= own(real)[:, None] + eps).any(1).mean(), abs=0.01)
    assert seen["watch/recall"] == pytest.approx((between <= own(fake)[None] + eps).any(1).mean(), abs=0.01)
    assert looked.look() == seen


def test_without_a_classifier_features_are_means_of_pixels() -> None:
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = Watch("warn", None, SET, 1000, 64, HERE)._features(images)  # type: ignore[arg-type]
    blocks = images.double().view(3, 8, 2, 8, 2).mean((2, 4)) / 255
    torch.testing.assert_close(found.double(), blocks.flatten(1), atol=1e-6, rtol=0)


def test_logged_norms_are_those_of_the_gradients() -> None:
    """Plain descent at rate 1 moves the weights by the gradient."""
    stage = builtin()["dcgan"]("tiny").last
    data = open_source("digits", stage.data, "train")
    opts = {name: replace(opt, kind="sgd", lr=1.0, betas=(0.0, 0.0)) for name, opt in stage.train.opts.items()}
    method = make(stage, data.info, {}, 0)
    trainer = Trainer(method, replace(stage.train, opts=opts, log_every=2), Feed(data, 32, stage.data, 0).batch, 0, 10, HERE)
    trainer.norms = True
    row = trainer.rows[0]
    batch = [trainer.draw(0, 0, 1)]
    assert not [name for name in trainer._update(row, batch, Moment(0, 10, 0)) if "grad_norm" in name], "between two log points nothing is computed"
    before = torch.cat([p.detach().flatten().clone() for p in trainer.owned["d"]])
    terms = trainer._update(row, batch, Moment(1, 10, 0))
    moved = torch.cat([p.detach().flatten() for p in trainer.owned["d"]]) - before
    assert float(terms["watch/d/grad_norm"]) == pytest.approx(float(moved.double().norm()), rel=1e-3)


# ---- verdicts


def verdicts(total: int = 1000) -> Watch:
    return Watch("rollback", None, SET, total, 64, HERE)  # type: ignore[arg-type]


def test_a_fall_to_half_of_the_classes_is_a_collapse_and_a_late_begin_too() -> None:
    w = verdicts()
    assert w.judge(100, {"watch/modes": 1.0}) == {}, "it has not begun"
    assert w.judge(200, {"watch/modes": 4.0}) == {}
    assert w.judge(300, {"watch/modes": 3.0}) == {}
    assert set(w.judge(400, {"watch/modes": 2.0})) == {"modes"}
    assert set(verdicts().judge(400, {"watch/modes": 1.0})) == {"modes"}, "after a third of the run"


def test_a_fall_to_a_third_of_the_coverage_is_a_collapse() -> None:
    assert verdicts().judge(100, {"watch/coverage": 0.0}) == {}, "it has not begun"
    w = verdicts()
    assert w.judge(100, {"watch/coverage": 0.6}) == {}
    assert w.judge(200, {"watch/coverage": 0.25}) == {}
    assert set(w.judge(300, {"watch/coverage": 0.19})) == {"coverage"}


def test_a_discriminator_that_is_right_for_a_fifth_of_the_run_has_won() -> None:
    w = verdicts()
    for told, steps in ((0.999, 100), (0.995, 50)):
        w.follow({"d/told": told, "d/loss": 0.0}, steps)
    assert w.judge(150, {}) == {}
    w.follow({"d/told": 0.98}, 50)
    for _ in range(3):
        w.follow({"d/told": 1.0}, 50)
    assert w.judge(350, {}) == {}, "it was not, in between"
    w.follow({"d/told": 1.0}, 50)
    assert set(w.judge(400, {})) == {"told"}
    w.go_back(State(healthy=100).to_json())
    assert w.judge(450, {}) == {} and w.state.rollbacks == 1


def test_only_games_are_watched_by_themselves() -> None:
    data = open_source("digits", builtin()["dcgan"]("tiny").last.data, "train")
    mode: Callable[[str, str], str] = lambda name, asked: chosen(asked, make(builtin()[name]("tiny").last, data.info, {}, 0), data, 10**6).mode  # type: ignore[arg-type]
    assert mode("dcgan", "auto") == "warn"
    assert mode("dcgan", "off") == "off"
    assert mode("vae", "auto") == "off"
    assert mode("vae", "rollback") == "rollback"
    assert mode("pca", "warn") == "off", "closed form"


def test_a_classifier_is_trained_only_where_that_is_a_small_part_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_source("digits", builtin()["dcgan"]("tiny").last.data, "train")
    method = make(builtin()["dcgan"]("tiny").last, data.info, {}, 0)
    assert not chosen("warn", method, data, 10**6).classifier
    assert chosen("warn", method, data, 10**7).classifier
    assert not chosen("warn", method, replace(data, labels=None, classes=()), 10**7).classifier
    monkeypatch.setattr(watch, "is_kept", lambda data: True)
    assert chosen("warn", method, data, 10**6).classifier
    assert not chosen("warn", method, data, 10**4).classifier, "too short to be looked at"


def test_the_state_of_a_checkpoint_is_checked() -> None:
    state = State(2, 500, 9.0, 0.51, 40, ("modes",))
    assert State.of(json.loads(json.dumps(state.to_json()))) == state
    with pytest.raises(UserError, match="watch of the checkpoint"):
        State.of({"rollbacks": "many"})
