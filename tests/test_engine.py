"""The loop's parts against closed forms; budgets; divergence; stages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelkiln.core.catalog import find
from pixelkiln.core.recipe import EmaConfig, OptConfig
from pixelkiln.core.rng import key, seed_all
from pixelkiln.core.types import Moment, UserError
from pixelkiln.data import Feed, open_source
from pixelkiln.engine import plan as planning
from pixelkiln.engine.build import load_method, open_run
from pixelkiln.engine.ema import Average, decay
from pixelkiln.engine.log import Log
from pixelkiln.engine.loop import Diverged, Trainer, only
from pixelkiln.engine.optim import build, lr_at, pack, settle, unpack
from pixelkiln.engine.train import Budget, Order, train
from pixelkiln.engine.where import Where

TOYS = str(Path(__file__).with_name("toys.py"))
HERE = Where("cpu", "fp32", False, torch.get_num_threads())
QUIET = Log(quiet=True)


def test_learning_rates_are_functions_of_the_step() -> None:
    at = lambda config, step: lr_at(config, Moment(step, 100, 0))
    warm = OptConfig(lr=1.0, warmup=0.1)
    assert [at(warm, k) for k in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])
    cosine = OptConfig(lr=2.0, decay="cosine", final=0.1)
    assert at(cosine, 0) == pytest.approx(2.0)
    assert at(cosine, 50) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert at(cosine, 25) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    line = OptConfig(lr=1.0, decay="linear", final=0.2)
    assert at(line, 50) == pytest.approx(0.6)
    assert at(OptConfig(lr=3.0), 77) == 3.0


def test_ema_half_life_does_not_depend_on_the_batch_size() -> None:
    for batch in (16, 64, 256):
        steps = 6400 // batch
        product = math.prod(decay(EmaConfig(half_life=3200, ramp=1e9), batch, (k + 1) * batch) for k in range(steps))
        assert product == pytest.approx(0.25, rel=1e-9)  # two half-lives
    assert decay(EmaConfig(half_life=1e9, ramp=0.05), 100, 1000) == pytest.approx(0.5**2), "ramp: half-life 50 images after 1000"


def test_ema_is_kept_in_fp32_and_moves_where_bf16_would_stand_still() -> None:
    """beta = 0.9999, 20,000 steps toward 1: exactly 1 - beta^n = 0.8647 (in bf16 it sticks at 0.03)."""

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
            self.net.register_buffer("count", torch.tensor(5))
            nn.init.zeros_(self.net.weight)

    tiny = Tiny()
    half_life = -math.log(2) / math.log(0.9999)
    average = Average(tiny, ("net",), EmaConfig(half_life=half_life, ramp=1e12))
    nn.init.ones_(tiny.net.weight)
    for k in range(20_000):
        average.update(1, k + 1)
    assert float(average.mean["net.weight"]) == pytest.approx(1 - 0.9999**20_000, rel=1e-4)
    assert "net.count" not in average.mean, "buffers are copied, not averaged"
    with average.applied():
        assert float(tiny.net.weight.detach()) == pytest.approx(0.8647, abs=4e-3)
    assert float(tiny.net.weight.detach()) == 1.0, "exactly the weights that it had"


@pytest.mark.parametrize("kind", ["adam", "adamw", "rmsprop", "sgd"])
def test_optimiser_state_survives_as_tensors(kind: str) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    def steps(model: nn.Module, opt: torch.optim.Optimizer, n: int) -> None:
        for i in range(n):
            opt.zero_grad()
            model(torch.full((4, 3), 0.1 * i)).square().sum().backward()
            opt.step()

    config = OptConfig(kind, lr=0.01)
    whole = net()
    opt = build(config, whole.parameters())
    steps(whole, opt, 3)
    other = net()
    other.load_state_dict(whole.state_dict())
    fresh = build(config, other.parameters())
    unpack({"main": fresh}, pack({"main": opt}))
    steps(whole, opt, 3)
    steps(other, fresh, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_only_freezes_gradients_and_statistics_and_undoes_it() -> None:
    pair = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))})
    pair.train()
    with only(pair, ("a",)):
        before = pair["b"][1].running_mean.clone()
        out = pair["b"](pair["a"](torch.randn(8, 2)))
        out.sum().backward()
        assert pair["a"].weight.grad is not None
        assert pair["b"][0].weight.grad is None
        assert torch.equal(before, pair["b"][1].running_mean)
    assert pair["b"][0].weight.requires_grad
    pair["b"](torch.randn(8, 2))
    assert not torch.equal(before, pair["b"][1].running_mean)


def order(out: Path, recipe: str = "pca", **more: object) -> Order:
    return Order(recipe, "digits", out, "tiny", **more)  # type: ignore[arg-type]


def test_a_budget_in_time_becomes_steps_in_the_plan(tmp_path: Path) -> None:
    run = train(order(tmp_path / "r", "dcgan", budget=Budget(seconds=6.0)), HERE, log=QUIET)
    facts = run.read_recipe()
    assert facts["plan"]["by"] == "time"
    assert facts["plan"]["seconds"] == 6.0
    assert facts["total"] == run.checkpoint().step >= 1
    assert facts["plan"]["steps"] * facts["plan"]["step_seconds"] <= 6.0


def test_a_budget_counts_what_joins_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vqgan's discriminator does: timed at the start alone, 400 seconds were 400 steps, which take 800."""
    recipe = find(f"{TOYS}:slower")("tiny")
    toy: Any = recipe.last.method
    monkeypatch.setattr(planning.time, "perf_counter", lambda: toy.clock)
    toy.clock = 0.0
    steps, facts = planning.plan(order(tmp_path / "r", "slower", budget=Budget(seconds=400.0)), recipe.last, open_source("digits"), {}, HERE, QUIET, True)
    spent = toy.clock
    assert facts["step_seconds"] == pytest.approx(2.0, rel=0.15)
    assert spent + 2 * steps == pytest.approx(400, rel=0.15)


def test_a_budget_in_images_is_rounded_up(tmp_path: Path) -> None:
    run = train(order(tmp_path / "r", "dcgan", budget=Budget(images=100), changes={"train.batch": "32"}), HERE, log=QUIET)
    assert run.checkpoint().step == 4


def test_divergence_names_step_term_and_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"loss is (-?inf|nan) at step 3; the last good checkpoint is .*step-0000000[23]"):
        train(order(tmp_path / "r", f"{TOYS}:exploding"), HERE, log=QUIET)
    from pixelkiln.core.runs import Run

    found, bad = Run(tmp_path / "r").last_good()
    assert found is not None
    assert not bad
    assert all(bool(torch.isfinite(v).all()) for v in found.tensors("weights").values()), "a poisoned step is never saved"


def test_what_cannot_be_factorized_since_a_weight_is_nan_is_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dvae` takes Cholesky's factor of a covariance; a mistake in a step with finite weights stays what it is."""
    step = Trainer.step

    def poisoned(self: Trainer, k: int) -> None:
        if k == 2:
            next(self.method.parameters()).data.fill_(torch.nan)
        step(self, k)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", poisoned)
        with pytest.raises(Diverged, match=r"weight .* is not finite; no checkpoint had been saved yet"):
            train(order(tmp_path / "r", "dvae", budget=Budget(steps=4), changes={"train.batch": "16"}), HERE, log=QUIET)

    def mistaken(self: Trainer, k: int) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(Trainer, "step", mistaken)
    with pytest.raises(RuntimeError, match="^a mistake$"):
        train(order(tmp_path / "s", "dvae", budget=Budget(steps=4), changes={"train.batch": "16"}), HERE, log=QUIET)


def test_two_stages_train_in_turn_and_load_as_one(tmp_path: Path) -> None:
    name = f"{TOYS}:two_stage"
    run = train(order(tmp_path / "r", name, changes={"codec.model.components": "4"}), HERE, log=QUIET)
    assert (tmp_path / "r" / "stages" / "codec" / "recipe.json").exists()
    with pytest.raises(UserError, match="not part of pixelkiln.*--recipe"):
        load_method(run.path)
    method, opened = load_method(run.path, name)
    assert type(method.parents["codec"]).__name__ == "PCA"
    assert opened.facts["parents"]["codec"]["run"] == "stages/codec", "relative, so that the folder can be moved"
    (tmp_path / "r").rename(tmp_path / "moved")
    moved, _ = load_method(tmp_path / "moved", name)
    from pixelkiln.core.types import Request

    assert torch.equal(moved.sample(Request((1, 2))), method.sample(Request((1, 2))))
    again = train(order(tmp_path / "moved", name), HERE, resume=True, log=QUIET)
    assert again.checkpoint().step == 40, "a complete run is left as it is"


def test_a_parent_that_was_trained_again_is_noticed(tmp_path: Path) -> None:
    name = f"{TOYS}:two_stage"
    train(order(tmp_path / "r", name), HERE, log=QUIET)
    manifest = next((tmp_path / "r" / "stages" / "codec" / "checkpoints").glob("*/manifest.json"))
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(UserError, match="not the run that"):
        load_method(tmp_path / "r", name)


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    train(order(tmp_path / "r"), HERE, log=QUIET)
    with pytest.raises(UserError, match="--resume"):
        train(order(tmp_path / "r"), HERE, log=QUIET)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="not a run folder"):
        train(order(tmp_path / "photos"), HERE, log=QUIET)


def test_a_resumed_run_refuses_other_data_and_another_recipe(tmp_path: Path) -> None:
    train(order(tmp_path / "r"), HERE, log=QUIET)
    with pytest.raises(UserError, match="has changed"):
        train(Order("pca", "shapes", tmp_path / "r", "tiny"), HERE, resume=True, log=QUIET)
    with pytest.raises(UserError, match="holds a run of 'pca'"):
        train(order(tmp_path / "r", "dcgan"), HERE, resume=True, log=QUIET)


def test_a_recipe_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    run = train(order(tmp_path / "r"), HERE, log=QUIET)
    facts = run.read_recipe()
    facts["stages"][0]["model"]["colour"] = 3
    run.recipe_file.write_text(json.dumps(facts))
    with pytest.raises(UserError, match="unknown field 'colour'"):
        open_run(run.path)


def test_seeding_is_torchs_own() -> None:
    """`seed_all` leaves torch's generator as torch.manual_seed does, and costs a small part of it."""
    seed_all(3, "step", 7)
    mine = torch.get_rng_state()
    torch.manual_seed(key(3, "step", 7))
    assert torch.equal(mine, torch.get_rng_state())


def test_frozen_modules_are_walked_once_and_evaluation_mode_never_stays(tmp_path: Path) -> None:
    """A net that something has left in evaluation mode is in training mode again at the next step."""
    run = train(order(tmp_path / "r", "dcgan", budget=Budget(steps=1)), HERE, log=QUIET)
    method, opened = load_method(run.path)
    seen = []
    method.generator.register_forward_pre_hook(lambda net, _: seen.append(all(m.training for m in net.modules())))
    feed = Feed(open_source("digits", opened.stage.data), 8, opened.stage.data, 0)
    trainer = Trainer(method, opened.stage.train, feed.batch, 0, 4, HERE)
    method.generator.norms[0].eval()
    trainer.step(0)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("kind", ["adam", "adamw", "rmsprop", "sgd"])
def test_moments_that_are_next_to_nothing_become_nothing_and_no_weight_changes(kind: str) -> None:
    """An input that falls silent: its moments sink below 1e-38 and stay there, unless they are settled; the weights are the same, bit for bit."""

    def trained(settled: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        opt = build(OptConfig(kind, lr=0.01, betas=(0.0, 0.9) if kind == "rmsprop" else (0.9, 0.999)), net.parameters())
        data = torch.randn(1200, 8, 4)
        data[20:, :, 0] = 0
        for k, x in enumerate(data):
            opt.zero_grad()
            net(x).square().mean().backward()
            opt.step()
            if settled and k % 100 == 99:
                settle({"main": opt})
        state = opt.state[net.weight]
        return net.weight.detach(), state[{"sgd": "momentum_buffer", "rmsprop": "square_avg"}.get(kind, "exp_avg")]

    (plain, stuck), (same, clean) = trained(False), trained(True)
    assert bool(((stuck != 0) & (stuck.abs() < 1.2e-38)).any()), "or there is nothing to settle"
    assert not bool(((clean != 0) & (clean.abs() < 1.2e-38)).any())
    assert torch.equal(clean[:, 1:], stuck[:, 1:])
    assert torch.equal(plain, same)
