"""The game that adversarial models share: objectives against the papers' formulas, what the rows do, and the traps of their rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelkiln.core.catalog import builtin
from pixelkiln.core.recipe import OptConfig
from pixelkiln.core.types import Batch, Condition, DataInfo, ImageShape, Moment, UserError
from pixelkiln.data import Feed, open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.loop import Trainer, only
from pixelkiln.engine.optim import build
from pixelkiln.engine.where import Where
from pixelkiln.methods.acgan import ACGAN, ACGANConfig
from pixelkiln.methods.cgan import CGAN, CGANConfig
from pixelkiln.methods.dcgan import DCGAN, DCGANConfig
from pixelkiln.methods.gan import GAN, GANConfig
from pixelkiln.nets.dcgan import DCGANNets
from pixelkiln.nets.mlpgan import MLPNets
from pixelkiln.objectives.adversarial import OBJECTIVES
from pixelkiln.objectives.game import Game, told
from pixelkiln.objectives.rules import Rules

NAMES = list(OBJECTIVES)
NOW = Moment(0, 100, 0)
TEN = tuple("0123456789")
SHAPE = ImageShape(1, 8, 8)
NETS = MLPNets(16, 16, dropout=0.0)


def game(classes: tuple[str, ...] = (), nets: MLPNets = NETS, **rules: Any) -> Game:
    """Two small perceptrons by these rules."""
    torch.manual_seed(0)
    return GAN(DataInfo(SHAPE, classes), GANConfig(nets=nets, rules=Rules(**rules), latent=4)).train()


def batch(n: int = 16, classes: int = 0, seed: int = 1) -> Batch:
    gen = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (n,), generator=gen) if classes else None
    return Batch(torch.rand(n, *SHAPE, generator=gen) * 2 - 1, Condition(label=label))


def trainer(name: str, **changes: Any) -> Trainer:
    """Of the recipe at size tiny, on digits."""
    stage = builtin()[name]("tiny").last
    stage = replace(stage, model=replace(stage.model, rules=replace(stage.model.rules, **changes)))
    data, where = open_source("digits", stage.data, "train"), Where("cpu", "fp32", False, 1)
    method = make(stage, data.info, {}, 0)
    where.place(method)
    return Trainer(method, stage.train, Feed(data, stage.train.batch, stage.data, 0).batch, 0, 20, where)


# -- objectives


def num(x: Tensor) -> float:
    return float(x.detach())


def mean(f: Callable[..., float], *columns: Tensor) -> float:
    return math.fsum(f(*map(num, row)) for row in zip(*columns, strict=True)) / len(columns[0])


def sigmoid(t: float) -> float:
    return 1 / (1 + math.exp(-t))


def log(p: float) -> float:
    return math.log(p)


CROSS = lambda r, f, s: mean(lambda a, b: -(1 - s) * log(sigmoid(a)) - s * log(1 - sigmoid(a)) - log(1 - sigmoid(b)), r, f)
PAPERS: Mapping[str, tuple[Callable[[Tensor, Tensor, float], float], Callable[[Tensor, Tensor], float]]] = {
    "minimax": (CROSS, lambda r, f: mean(lambda b: log(1 - sigmoid(b)), f)),
    "non-saturating": (CROSS, lambda r, f: mean(lambda b: -log(sigmoid(b)), f)),
    "least-squares": (lambda r, f, s: mean(lambda a, b: (a - (1 - s)) ** 2 / 2 + b**2 / 2, r, f), lambda r, f: mean(lambda b: (b - 1) ** 2 / 2, f)),
    "hinge": (lambda r, f, s: mean(lambda a, b: -min(0, -1 + a) - min(0, -1 - b), r, f), lambda r, f: mean(lambda b: -b, f)),
    "wasserstein": (lambda r, f, s: mean(lambda a, b: b - a, r, f), lambda r, f: mean(lambda b: -b, f)),
    "relativistic": (lambda r, f, s: mean(lambda a, b: -log(sigmoid(a - b)), r, f), lambda r, f: mean(lambda a, b: -log(sigmoid(b - a)), r, f)),
}


def slopes(f: Callable[[Tensor, Tensor], float], real: Tensor, fake: Tensor) -> list[float]:
    """Central differences by every logit."""
    found = []
    for which in (0, 1):
        for i in range(len(real)):
            ends = []
            for h in (1e-5, -1e-5):
                pair = [real.clone(), fake.clone()]
                pair[which][i] += h
                ends.append(f(*pair))
            found.append((ends[0] - ends[1]) / 2e-5)
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_objectives_are_those_of_the_papers(name: str, smoothing: float) -> None:
    torch.manual_seed(0)
    real, fake = (2 * torch.randn(9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    objective, (d, g) = OBJECTIVES[name], PAPERS[name]
    if smoothing and not objective.smooths:
        return
    for ours, slow in ((objective.d(real, fake, smoothing), lambda r, f: d(r, f, smoothing)), (objective.g(real, fake), g)):
        assert num(ours) == pytest.approx(slow(real.detach(), fake.detach()), rel=1e-12)
        mine = torch.autograd.grad(ours, (real, fake), allow_unused=True)
        flat = [x for t in mine for x in (torch.zeros(9) if t is None else t).tolist()]
        assert flat == pytest.approx(slopes(slow, real.detach(), fake.detach()), abs=1e-8)
    assert objective.paired == (torch.autograd.grad(objective.g(real, fake), real, allow_unused=True)[0] is not None)
    half = real.detach().bfloat16()
    assert objective.d(half, half).dtype == objective.g(half, half).dtype == torch.float32


P, Q = torch.tensor([3.0, 1.0, 4.0]) / 8, torch.tensor([1.0, 5.0, 2.0]) / 8  # data and generator, on three points
REAL, FAKE = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]), torch.tensor([0, 1, 1, 1, 1, 1, 2, 2])


def best(name: str) -> tuple[Tensor, float]:
    """D's best answers to the three points (one of them, where there are more), and L_D there, by trying."""
    d = torch.zeros(3, dtype=torch.float64)
    for reach in (3.0, 0.1, 0.005):
        grid = torch.linspace(-reach, reach, 81, dtype=torch.float64)
        for i in range(3):  # each point's answer counts by itself
            tried = d.repeat(len(grid), 1)
            tried[:, i] += grid
            losses = torch.stack([OBJECTIVES[name].d(t[REAL], t[FAKE]) for t in tried])
            d[i] += grid[losses.argmin()]
    return d, num(OBJECTIVES[name].d(d[REAL], d[FAKE]))


def test_the_best_discriminator_measures_jensen_and_shannon() -> None:
    """Goodfellow et al. 2014, proposition 1 and theorem 1: D* = p / (p + q), V = -log 4 + 2 JSD(p, q)."""
    d, loss = best("minimax")
    assert d.sigmoid().tolist() == pytest.approx((P / (P + Q)).tolist(), abs=1e-3)
    m = (P + Q) / 2
    jsd = num((P * (P / m).log()).sum() + (Q * (Q / m).log()).sum()) / 2
    assert -loss == pytest.approx(-math.log(4) + 2 * jsd, abs=1e-6)
    value = num(OBJECTIVES["minimax"].g(d[REAL], d[FAKE])) - num(torch.nn.functional.softplus(-d[REAL]).mean())
    assert value == pytest.approx(-loss), "a zero-sum game: G has the same value but for what it cannot change"


def test_the_best_least_squares_measures_pearsons_chi_square() -> None:
    """Mao et al. 2017, theorem 1, with b - a = 2 (b - c): 2 - 8 L_D = chi^2(p + q || 2 q) = sum (p - q)^2 / (p + q)."""
    d, loss = best("least-squares")
    assert d.tolist() == pytest.approx((P / (P + Q)).tolist(), abs=1e-3)
    assert 2 - 8 * loss == pytest.approx(num(((P - Q) ** 2 / (P + Q)).sum()), abs=1e-5)


def test_the_best_hinge_measures_total_variation() -> None:
    """Lim and Ye 2017: D* = sign(p - q), L_D = 2 (1 - TV)."""
    d, loss = best("hinge")
    assert d.tolist() == pytest.approx((P - Q).sign().tolist(), abs=1e-3)
    assert loss == pytest.approx(2 * (1 - num((P - Q).abs().sum()) / 2), abs=1e-6)


def test_the_critic_measures_how_far_points_were_moved() -> None:
    """W1 of x and x + s is |s|, which D(x) = -sign(s) x attains, and no other 1-Lipschitz D exceeds."""
    x, s = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64), 0.7
    loss = OBJECTIVES["wasserstein"].d
    assert num(-loss(-x, -(x + s))) == pytest.approx(s)
    for f in (torch.sin, torch.tanh, torch.abs, lambda t: 0.9 * t):
        assert num(-loss(f(x), f(x + s))) <= s


@pytest.mark.parametrize(("name", "slope"), [("minimax", 0), ("non-saturating", -1), ("least-squares", -41), ("hinge", -1), ("wasserstein", -1), ("relativistic", -1)])
def test_slopes_of_the_generator_against_a_sure_discriminator(name: str, slope: float) -> None:
    """D(x) = 40, D(G(z)) = -40: only Goodfellow's eq. 1 leaves G without a gradient. A hinge on L_G would, too, once D is fooled."""
    real, fake = torch.tensor([40.0]), torch.tensor([-40.0], requires_grad=True)
    assert num(torch.autograd.grad(OBJECTIVES[name].g(real, fake), fake)[0]) == pytest.approx(slope, abs=1e-6)
    fooled = torch.tensor([5.0], requires_grad=True)
    if name in ("hinge", "wasserstein"):
        assert num(torch.autograd.grad(OBJECTIVES[name].g(real, fooled), fooled)[0]) == -1


def test_smoothing_touches_real_images_alone() -> None:
    """Salimans et al. 2016, section 3.4: at the target 1 - s D's best answer to real images is logit(1 - s); that to generated ones moves nowhere."""
    for name in ("minimax", "non-saturating", "least-squares"):
        real, fake = torch.randn(2, 8).requires_grad_().unbind()
        plain, smooth = (torch.autograd.grad(OBJECTIVES[name].d(real, fake, s), (real, fake), retain_graph=True) for s in (0.0, 0.1))
        assert torch.equal(plain[1], smooth[1])
        assert not torch.equal(plain[0], smooth[0])
        target = torch.tensor([0.9 if name == "least-squares" else math.log(9)], requires_grad=True)
        assert num(torch.autograd.grad(OBJECTIVES[name].d(target, target.detach(), 0.1), target)[0]) == pytest.approx(0, abs=1e-7)


def test_told_is_the_share_of_pairs_in_the_right_order() -> None:
    real, fake = torch.tensor([0.0, 1.0, 1.0, -2.0]), torch.tensor([0.0, -3.0, 1.0])
    slow = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in real.tolist() for b in fake.tolist()) / 12
    assert num(told(real, fake)) == pytest.approx(slow)


# -- what is refused


@pytest.mark.parametrize("name", [n for n in NAMES if not OBJECTIVES[n].smooths])
def test_smoothing_is_refused_where_there_is_no_target(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} has no target to smooth; set it to 0") as caught:
        game(objective=name, smoothing=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", [{"gradient": 10.0}, {"r1": 1.0}, {"r2": 0.1}, {"r1": -1.0, "r_every": 4}, {"r1": 1.0, "r_sigma": 0.1}])
def test_batchnorm_and_a_penalty_on_each_images_gradient_are_refused(rule: dict[str, Any]) -> None:
    info, rules = DataInfo(ImageShape(1, 16, 16)), Rules(**rule)
    with pytest.raises(UserError, match=f"model.rules.{next(iter(rule))} .*BatchNorm.*--model.nets.norm layer") as caught:
        DCGAN(info, DCGANConfig(nets=DCGANNets(8, 8), rules=rules))
    assert "\n" not in str(caught.value)
    for norm in ("layer", "spectral", "none"):
        DCGAN(info, DCGANConfig(nets=DCGANNets(8, 8, norm=norm), rules=rules))
    game(**rule)


def test_what_batchnorm_would_do_to_a_penalty() -> None:
    """The reason for the refusal: the gradient of the sum of D's answers by one image depends on the others."""
    from pixelkiln.objectives.penalties import input_gradients

    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for norm, mixes in (("batch", True), ("layer", False)):
        torch.manual_seed(0)
        d = DCGAN(DataInfo(ImageShape(1, 16, 16)), DCGANConfig(nets=DCGANNets(8, 8, norm=norm))).discriminator.train()  # type: ignore[arg-type]
        alone, beside = (input_gradients(lambda u, d=d: d(u)[0], t)[0] for t in (x, torch.cat([x[:1], 3 * x[1:]])))
        assert (num((alone - beside).norm() / alone.norm()) > 0.05) == mixes


@pytest.mark.parametrize(("rules", "what"), [({"r1": -2.0}, "r1 is -2"), ({"noise": -0.1}, "noise is -0.1"), ({"critic_steps": 0}, "at least 1"), ({"r_every": 0}, "at least 1")])
def test_rules_out_of_range_are_refused(rules: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        game(**rules)


def test_differences_and_dropout_are_refused() -> None:
    with pytest.raises(UserError, match=r"r_sigma .*--model.nets.dropout 0"):
        game(nets=MLPNets(16, 16, dropout=0.3), r1=1.0, r_sigma=0.1)


@pytest.mark.parametrize(("kind", "config", "condition"), [(CGAN, CGANConfig, "concat"), (ACGAN, ACGANConfig, "generator")])
def test_conditional_models_need_labels_and_nets_that_take_them(kind: Any, config: Any, condition: str) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__.lower()} learns classes, and these images have none"):
        kind(DataInfo(SHAPE), config(nets=replace(NETS, condition=condition)))
    with pytest.raises(UserError, match=f"--model.nets.condition {condition}"):
        kind(DataInfo(SHAPE, TEN), config(nets=NETS))
    kind(DataInfo(SHAPE, TEN), config(nets=replace(NETS, condition=condition)))


# -- rows


def test_the_lazy_penalty_is_a_row_of_its_own_as_many_times_as_strong() -> None:
    eager, lazy = game(r1=2.0, r2=0.5), game(r1=2.0, r2=0.5, r_every=4)
    assert [row.name for row in eager.updates()] == ["d", "g"]
    d, r, g = lazy.updates()
    assert (r.name, r.nets, r.opt, r.every, r.repeat, r.fresh) == ("r", ("discriminator",), d.opt, 4, 1, False)
    assert {"r1", "r2"} <= set(eager.d_loss(batch(), NOW)) and not {"r1", "r2"} & set(lazy.d_loss(batch(), NOW))
    torch.manual_seed(3)
    once = eager.r_loss(batch(), NOW)
    torch.manual_seed(3)
    rare = lazy.r_loss(batch(), NOW)
    assert num(rare["loss"]) == pytest.approx(4 * num(once["r1"] + once["r2"])) and num(rare["loss"]) > 0
    assert num(rare["r1"]) == pytest.approx(num(once["r1"]))


def test_eager_and_lazy_penalties_weigh_the_same_whatever_the_turns_of_d() -> None:
    """Weights that stand still: the same sum over eight steps of three turns each."""
    sums = []
    for every in (1, 4):
        t = trainer("wgan-gp", gradient=0.0, r1=1.0, r_every=every, critic_steps=3)
        same, total = t.draw(0, 0, 1), 0.0
        t.draw = lambda d, i, n, same=same: same
        t.config = replace(t.config, opts={name: replace(opt, lr=0.0) for name, opt in t.config.opts.items()})
        row = next(r for r in t.rows if r.name == ("d" if every == 1 else "r"))

        def seen(b: Batch, moment: Moment, row: Any = row) -> Any:
            nonlocal total
            terms = row.loss(b, moment)
            total += num(terms["r1"] if row.name == "d" else terms["loss"])
            return terms

        t.rows = [replace(r, loss=seen) if r is row else r for r in t.rows]
        for k in range(8):
            t.step(k)
        sums.append(total)
    assert sums[1] == pytest.approx(sums[0], rel=1e-5) and sums[0] > 0


def test_the_lazy_penalty_shares_the_moments_of_the_discriminator() -> None:
    t = trainer("wgan-gp", gradient=0.0, r1=1.0, r_every=4, critic_steps=1)
    for k in range(5):
        t.step(k)
    taken = {int(s["step"]) for s in t.opts["d"].state.values()}
    assert set(t.opts) == {"d", "g"} and max(taken) == 5 + 2  # Adam's own count: five steps of row d, and row r at steps 0 and 4


def test_r1_alone_draws_no_images() -> None:
    method = game(r1=1.0, r_every=2)
    method.generator.register_forward_hook(lambda *_: pytest.fail("the generator ran"))
    method.r_loss(batch(), NOW)


@pytest.mark.parametrize(("done", "share"), [(0, 1.0), (50, 0.55), (100, 0.1)])
def test_penalties_fall_to_their_share(done: int, share: float) -> None:
    full, fading = game(r1=2.0), game(r1=2.0, r_end=0.1)
    at = Moment(done, 100, 16 * done)
    assert num(fading.r_loss(batch(), at)["r1"]) == pytest.approx(share * num(full.r_loss(batch(), at)["r1"]), rel=1e-5)


def test_the_automatic_gamma_is_that_of_the_whole_batch() -> None:
    """0.0002 H W / batch (StyleGAN2-ADA), also where the batch is cut into parts."""
    auto, fixed = game(r1=-1.0), game(r1=0.0002 * 64 / 64)
    at = Moment(0, 100, 0, 64)
    assert num(auto.r_loss(batch(64), at)["r1"]) == pytest.approx(num(fixed.r_loss(batch(64), at)["r1"]))
    assert num(auto.r_loss(batch(16), at)["r1"]) == pytest.approx(num(fixed.r_loss(batch(16), at)["r1"]))
    assert num(auto.r_loss(batch(64), NOW)["r1"]) == pytest.approx(num(fixed.r_loss(batch(64), NOW)["r1"]))


def test_critic_steps_have_fresh_images_each() -> None:
    t = trainer("wgan")
    assert t.fresh == 5
    drawn: list[int] = []
    draw = t.draw
    t.draw = lambda d, i, n: drawn.append(d) or draw(d, i, n)  # type: ignore[func-returns-value]
    for k in range(2):
        t.step(k)
    assert drawn == list(range(10)), "and G's step draws none"


def test_cut_weights_stay_in_their_box_and_moments_are_rmsprops() -> None:
    t = trainer("wgan")
    for k in range(3):
        t.step(k)
        sizes = [num(p.detach().abs().max()) for p in t.method.discriminator.parameters()]
        assert max(sizes) == pytest.approx(0.01) and all(s <= 0.0100001 for s in sizes)
    assert max(num(p.detach().abs().max()) for p in t.method.generator.parameters()) > 0.5, "G's are free"
    assert {"square_avg", "step"} <= set(next(iter(t.opts["d"].state.values())))


def test_rmsprop_is_hintons() -> None:
    """v <- a v + (1 - a) g^2, w <- w - lr g / (sqrt(v) + eps)."""
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    opt = build(OptConfig("rmsprop", lr=0.1, betas=(0.0, 0.9), eps=1e-3), [w])
    v, slow = [0.0, 0.0], [1.0, -2.0]
    for _ in range(4):
        (w.square() * torch.tensor([1.0, 3.0])).sum().backward()
        opt.step()
        opt.zero_grad()
        for i, scale in enumerate((1.0, 3.0)):
            g = 2 * scale * slow[i]
            v[i] = 0.9 * v[i] + 0.1 * g**2
            slow[i] -= 0.1 * g / (math.sqrt(v[i]) + 1e-3)
    assert w.tolist() == pytest.approx(slow, rel=1e-5)


def test_a_paired_objective_sees_real_images_without_a_graph() -> None:
    method = game(objective="relativistic")
    seen: list[Tensor] = []

    def watching(real: Tensor, fake: Tensor) -> Tensor:
        seen.extend((real, fake))
        return OBJECTIVES["relativistic"].g(real, fake)

    method.objective = replace(OBJECTIVES["relativistic"], g=watching)
    with only(method, ("generator",)):
        method.g_loss(batch(), NOW)["loss"].backward()
    assert not seen[0].requires_grad and seen[1].requires_grad
    expected = method.discriminator(batch().x)[0]
    torch.testing.assert_close(seen[0], expected.detach())  # D(x) of the real images, each against one generated
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in method.generator.parameters())
