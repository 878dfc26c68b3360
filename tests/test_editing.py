"""RePaint, inversion, composition and guidance as methods, over a Gaussian "model" whose denoiser is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pixelkiln.core.images import from_uint8, to_uint8
from pixelkiln.core.protocols import Classifier, Denoiser, Method
from pixelkiln.core.types import Ability, Condition, DataInfo, ImageShape, Request, UserError
from pixelkiln.edit.compose import Composed, ComposedConfig
from pixelkiln.edit.guided import Autoguided, AutoguidedConfig, ClassifierGuided, ClassifierGuidedConfig
from pixelkiln.edit.invert import Invert, InvertConfig
from pixelkiln.edit.repaint import RePaint, RePaintConfig, down, up, walk
from pixelkiln.engine.sample import slerp
from pixelkiln.processes import cosine_path, linear_path
from pixelkiln.solvers import solver, spaced
from pixelkiln.solvers.diffusion import KNOBS, Sampling

INFO = DataInfo(ImageShape(1, 1, 2), ("low", "high"))
MU, RHO, VAR = 0.1, 0.95, 0.09  # data: two pixels N(MU, VAR) with correlation RHO, moved by 0.2 (label - 1/2)
SIGMA = VAR * torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)


class Gaussian(Method, Denoiser):
    """The exact denoiser D = mu + SIGMA (SIGMA + s^2)^-1 (x - mu), of all data without a label."""

    abilities = KNOBS | {Ability.LABEL}

    def __init__(self, off: float = 0.0, info: DataInfo = INFO, path=cosine_path()) -> None:
        super().__init__(info)
        self.path, self.off = path, off  # an error of the mean, of a weak model
        self.sigma_range = (path.s_min, path.s_max)
        self.evaluations = 0

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        assert cond.given() <= {"label"}
        self.evaluations += 1
        label = cond.label if cond.label is not None else torch.full((len(x),), -1)
        mu = MU + self.off + 0.2 * torch.tensor([-0.5, 0.5, 0.0], dtype=torch.float64)[label][:, None]
        flat, s2 = x.flatten(1).double(), sigma.double()[:, None, None] ** 2
        gain = SIGMA @ torch.linalg.inv(SIGMA + s2 * torch.eye(2, dtype=torch.float64))  # (B, 2, 2)
        return (mu + (gain @ (flat - mu)[:, :, None])[:, :, 0]).view_as(x).to(x.dtype)

    def sigmas(self, steps: int, solver_name: str, spacing: str | None = None, levels: tuple[float, float] | None = None) -> Tensor:
        return spaced(self.path, steps, spacing or solver(solver_name).spacing, levels)

    def draw(self, request: Request) -> Tensor:
        raise NotImplementedError


def painted(request: Request, base: Gaussian | None = None, **config: object) -> Tensor:
    order = RePaintConfig(**{"sampling": Sampling("ddim", 40, spacing="karras", eta=1.0), **config})  # type: ignore[arg-type]
    return RePaint(INFO, order, {"base": base or Gaussian()}).sample(request)


def half(n: int) -> Tensor:
    """The second pixel is to be redrawn."""
    return torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(n, -1, -1, -1)


def test_the_walk_is_that_of_the_paper() -> None:
    """Brute force: the schedule of Lugmayr et al. as their appendix B has it, in time steps T-1 .. 0 and -1 for the finished image."""

    def theirs(T: int, jump: int, times: int) -> list[int]:
        left = {j: times - 1 for j in range(0, T - jump, jump)}
        t, found = T, []
        while t >= 1:
            t -= 1
            found.append(t)
            if left.get(t, 0) > 0:
                left[t] -= 1
                for _ in range(jump):
                    t += 1
                    found.append(t)
        return [*found, -1]

    for T, jump, times in ((250, 10, 10), (6, 2, 2), (40, 5, 5), (7, 3, 4), (5, 5, 3), (3, 1, 2), (1, 1, 4), (9, 2, 1)):
        singles = [0]  # ours, with the jump up taken in single steps
        for a, b in zip(walk(T, jump, times), walk(T, jump, times)[1:], strict=False):
            singles += [b] if b > a else range(a - 1, b - 1, -1)
        assert [T - 1 - i for i in singles] == theirs(T, jump, times)


def test_a_jump_up_has_the_marginal_of_the_higher_level() -> None:
    """Variance VAR + s^2 before, VAR + higher^2 after; on the cosine path from t = .50 to .51, where another formula re-noises 8 times too little."""
    path, gen = cosine_path(), torch.Generator().manual_seed(0)
    n = 400_000
    for low, high in ((0.50, 0.51), (0.2, 0.4), (0.9, 0.95)):
        s, higher = (float(path.ratio(torch.tensor(t, dtype=torch.float64))) for t in (low, high))
        x = math.sqrt(VAR + s**2) * torch.randn(n, generator=gen, dtype=torch.float64)
        moved = up(x, s, higher, torch.randn(n, generator=gen, dtype=torch.float64))
        assert moved.var().item() == pytest.approx(VAR + higher**2, rel=0.01)
        assert (moved - x).std().item() == pytest.approx(math.sqrt(higher**2 - s**2), rel=0.01)
    one, two = up(torch.zeros(n), 0.3, 0.7, torch.randn(n, generator=gen)), up(torch.zeros(n), 0.3, 0.5, torch.randn(n, generator=gen))
    assert up(two, 0.5, 0.7, torch.randn(n, generator=gen)).std().item() == pytest.approx(one.std().item(), rel=0.01)  # two jumps are one


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_step_down_has_the_marginal_of_the_lower_level(eta: float) -> None:
    """With the exact denoiser of a point, x = s z goes to r z whatever eta is."""
    gen, n, s, r = torch.Generator().manual_seed(1), 400_000, 2.0, 1.5
    x = 0.7 + s * torch.randn(n, generator=gen, dtype=torch.float64)
    out = down(x, torch.full_like(x, 0.7), s, r, eta, lambda: torch.randn(n, generator=gen, dtype=torch.float64))
    assert out.mean().item() == pytest.approx(0.7, abs=0.01)
    assert out.std().item() == pytest.approx(r, rel=0.01)


def test_what_is_not_masked_stays_bit_for_bit() -> None:
    info = DataInfo(ImageShape(1, 4, 6), INFO.classes)
    gen = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (5, 1, 4, 6), generator=gen, dtype=torch.uint8)
    mask = (torch.rand(5, 1, 4, 6, generator=gen) < 0.5).float()

    class Blur(Gaussian):
        def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
            return torch.tanh(x / (1 + sigma.view(-1, 1, 1, 1)))

    order = RePaintConfig(2, 2, Sampling("ddim", 7, eta=1.0))
    made = RePaint(info, order, {"base": Blur(info=info)})
    source = from_uint8(pixels)
    out = made.sample(Request((1, 2, 3, 4, 5), Condition(source=source, mask=mask)))
    assert torch.equal(out[mask == 0], source[mask == 0])
    assert torch.equal(to_uint8(out)[mask == 0], pixels[mask == 0])
    assert (out[mask == 1] != source[mask == 1]).all()
    changed = torch.where(mask == 1, -source, source)  # what is to be redrawn is never looked at
    assert torch.equal(made.sample(Request((1, 2, 3, 4, 5), Condition(source=changed, mask=mask))), out)


def test_resampling_brings_the_redrawn_pixel_to_its_conditional_distribution() -> None:
    """Of x_2 given x_1 = y in closed form: mean MU + RHO (y - MU), variance VAR (1 - RHO^2). Without jumps it is far from it (section 4.2)."""
    n, y = 500, 0.55
    request = Request(tuple(range(n)), Condition(source=torch.full((n, 1, 1, 2), y), mask=half(n)))
    mean, std = MU + RHO * (y - MU), math.sqrt(VAR * (1 - RHO**2))
    plain, often = painted(request, times=1)[:, 0, 0, 1], painted(request, jump=2, times=12)[:, 0, 0, 1]
    assert mean - plain.mean() > 0.1
    assert abs(often.mean() - mean) < 0.025
    assert plain.std() > 1.2 * std
    assert often.std().item() == pytest.approx(std, rel=0.2)


def test_repaint_counts_its_evaluations_and_knows_its_own_row_only() -> None:
    base, seen = Gaussian(), list[tuple[int, int]]()
    cond = Condition(label=torch.tensor([0, 1, -1]), source=torch.tensor([-0.5, 0.0, 0.5]).view(3, 1, 1, 1).expand(3, 1, 1, 2), mask=half(3))
    request = Request((4, 5, 6), cond, steps=6, guidance=1.5, callback=lambda i, n, x0: seen.append((i, n)))
    whole = painted(request, base, jump=2, times=2)
    assert base.evaluations == 10
    assert seen == [(i, 10) for i in range(10)]
    parts = torch.cat([painted(request.take(slice(a, b)), jump=2, times=2) for a, b in ((0, 1), (1, 3))])
    assert torch.allclose(whole, parts, atol=1e-6)
    assert torch.equal(whole, painted(request, jump=2, times=2))


def test_refusals_name_the_remedy() -> None:
    source, mask = torch.zeros(1, 1, 1, 2), half(1)
    cases = [
        (Condition(mask=mask), {}, "--source"),
        (Condition(source=source), {}, "--mask"),
        (Condition(source=source, mask=mask[:, :, :, :1]), {}, "mask is"),
        (Condition(source=source[..., :1], mask=mask), {}, "source is"),
        (Condition(source=source, mask=mask), {"eta": 1.5}, "eta"),
        (Condition(source=source, mask=mask), {"steps": 0}, "1 or more"),
        (Condition(source=source, mask=mask), {"solver": "heun"}, "solver"),
    ]
    for cond, knobs, words in cases:
        with pytest.raises(UserError, match=words):
            painted(Request((1,), cond, **knobs))
    with pytest.raises(UserError, match="jump 0"):
        RePaint(INFO, RePaintConfig(jump=0), {"base": Gaussian()})
    with pytest.raises(UserError, match="--parent base=RUN"):
        RePaint(INFO, RePaintConfig())


@pytest.mark.parametrize("path", [linear_path(), cosine_path()], ids=lambda p: p.name)
def test_inversion_and_back_is_the_picture(path) -> None:
    gen = torch.Generator().manual_seed(3)
    x = (MU + (torch.randn(8, 2, generator=gen, dtype=torch.float64) @ torch.linalg.cholesky(SIGMA).T)).float().view(8, 1, 1, 2)
    error = {}
    for steps in (25, 100):
        made = Invert(INFO, InvertConfig(sampling=Sampling("euler", steps, spacing="time")), {"base": Gaussian(path=path)})
        z = made.encode(x)
        error[steps] = (made.decode(z) - x).abs().max().item()
    assert error[100] < 0.1
    assert error[100] < error[25] / 2
    again = made.sample(Request(tuple(range(8)), Condition(source=x)))
    assert torch.allclose(again, made.decode(z), atol=1e-6)
    exact = Invert(INFO, InvertConfig("exact", 1e-3, Sampling("euler", 25, spacing="time")), {"base": Gaussian(path=path)})
    assert (exact.decode(exact.encode(x)) - x).abs().max().item() < 2e-3
    assert error[25] > 0.02  # which the other way is not


def test_codes_are_the_closed_form_and_about_standard_normal() -> None:
    """The flow of a Gaussian: along each axis of variance v, x_s - mu = sqrt((v + s^2) / v) (x - mu)."""
    gen = torch.Generator().manual_seed(4)
    x = (MU + (torch.randn(500, 2, generator=gen, dtype=torch.float64) @ torch.linalg.cholesky(SIGMA).T)).float()
    base = Gaussian()
    z = Invert(INFO, InvertConfig(sampling=Sampling("euler", 400, spacing="time")), {"base": base}).encode(x.view(-1, 1, 1, 2)).flatten(1).double()
    s = base.path.s_max
    values, axes = torch.linalg.eigh(SIGMA)
    want = (((x.double() - MU) @ axes) * ((values + s**2) / values).sqrt()) @ axes.T + MU
    assert torch.allclose(z, want / math.sqrt(1 + s**2), atol=0.03)
    assert z.std().item() == pytest.approx(1.0, abs=0.1)
    made = Invert(INFO, InvertConfig(), {"base": base})
    ends = x.view(-1, 1, 1, 2)[:2]
    middle = made.decode(slerp(made.encode(ends[:1]), made.encode(ends[1:]), 0.5))
    assert torch.isfinite(middle).all()


def test_a_picture_encoded_without_and_decoded_with_a_label_moves_to_the_class() -> None:
    x = torch.full((2, 1, 1, 2), MU)
    made = Invert(INFO, InvertConfig(sampling=Sampling("euler", 300, spacing="time")), {"base": Gaussian()})
    out = made.sample(Request((1, 2), Condition(label=torch.tensor([0, 1]), source=x)))
    assert out[0].mean().item() == pytest.approx(MU - 0.1, abs=0.02)
    assert out[1].mean().item() == pytest.approx(MU + 0.1, abs=0.02)
    with pytest.raises(UserError, match="--source"):
        made.sample(Request((1,)))


class Odds(Method, Classifier):
    """The exact classifier of the two labels' Gaussians at any level: log p(x | label), in the pixels' covariance plus s^2."""

    generates = False

    def __init__(self, info: DataInfo = INFO) -> None:
        super().__init__(info)
        self.sigma_range = (0.0, math.inf)

    def logits(self, x: Tensor, sigma: Tensor) -> Tensor:
        inverse = torch.linalg.inv(SIGMA + sigma.double()[:, None, None] ** 2 * torch.eye(2, dtype=torch.float64))
        away = x.flatten(1).double()[:, None] - (MU + 0.2 * torch.tensor([-0.5, 0.5], dtype=torch.float64))[:, None]  # (B, 2, 2)
        return -(away[:, :, None] @ inverse[:, None] @ away[..., None])[..., 0, 0] / 2

    def draw(self, request: Request) -> Tensor:
        raise UserError("does not generate")


class Pair(Gaussian):
    """The exact denoiser of the even mixture of both labels, which does not know labels at all."""

    abilities = KNOBS - {Ability.GUIDANCE}

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        assert cond.given() == frozenset()
        n = len(x)
        each = [Gaussian.denoise(self, x, sigma, Condition(label=torch.full((n,), k))) for k in (0, 1)]
        p = Odds().logits(x, sigma).softmax(1).to(x.dtype)
        return p[:, :1, None, None] * each[0] + p[:, 1:, None, None] * each[1]


def test_a_classifier_makes_an_unconditional_model_conditional() -> None:
    """At w = 1 the same images as the exact conditional model's from the same noise; label -1 is the mixture."""
    n = 64
    label = torch.arange(n) % 2
    made = ClassifierGuided(INFO, ClassifierGuidedConfig(Sampling("heun", 20)), {"base": Pair(), "classifier": Odds()})
    weak = Autoguided(INFO, AutoguidedConfig(Sampling("heun", 20, guidance=1.0)), {"base": Gaussian(), "weak": Gaussian(0.3)})
    request = Request(tuple(range(n)), Condition(label=label))
    assert Ability.LABEL in made.abilities
    assert torch.allclose(made.sample(request), weak.sample(request), atol=1e-4)
    free = made.sample(Request(tuple(range(n)), Condition(label=torch.full((n,), -1))))
    assert torch.equal(free, made.sample(Request(tuple(range(n)), Condition(label=label), guidance=0.0)))
    assert not torch.allclose(free, made.sample(request), atol=0.05)
    strong = made.sample(Request(tuple(range(n)), Condition(label=label), guidance=4.0))
    gap = [float(out[label == 1].mean() - out[label == 0].mean()) for out in (free, made.sample(request), strong)]
    assert gap[0] < gap[1] < gap[2]
    with pytest.raises(UserError, match="must be a classifier"):
        ClassifierGuided(INFO, ClassifierGuidedConfig(), {"base": Pair(), "classifier": Gaussian()})
    with pytest.raises(UserError, match="classes"):
        ClassifierGuided(INFO, ClassifierGuidedConfig(), {"base": Pair(), "classifier": Odds(DataInfo(INFO.shape, ("a", "b")))})


def test_autoguidance_moves_away_from_the_weak_model() -> None:
    """Both exact for Gaussians but for the weak one's mean, off by 0.1: the result's mean is off by (1 - w) 0.1."""
    n = 200
    for w in (1.0, 2.0, 0.0):
        made = Autoguided(INFO, AutoguidedConfig(), {"base": Gaussian(), "weak": Gaussian(0.1)})
        out = made.sample(Request(tuple(range(n)), Condition(label=torch.full((n,), -1)), guidance=w, steps=40))
        same = made.sample(Request(tuple(range(n)), Condition(label=torch.full((n,), -1)), guidance=1.0, steps=40))
        assert (out - same).mean().item() == pytest.approx((1 - w) * 0.1, abs=0.01)


def test_compositions() -> None:
    """With one covariance, weights w_i move the mean by sum w_i (mu_i - mu): exact, here from the same noise."""
    n = 16
    plain = Composed(INFO, ComposedConfig(), {"base": Gaussian()}).sample(Request(tuple(range(n)), steps=30))
    for labels, weights in ((("low", "high"), (1.0, 1.0)), (("1",), (1.0,)), (("high",), (-1.0,)), (("low", "high"), (0.5, 2.0))):
        made = Composed(INFO, ComposedConfig(labels, weights), {"base": Gaussian()})
        moved = sum(w * (0.1 if label in ("high", "1") else -0.1) for label, w in zip(labels, weights, strict=True))
        out = made.sample(Request(tuple(range(n)), steps=30))
        assert torch.allclose(out, plain + moved, atol=2e-3)
    assert Ability.LABEL not in made.abilities
    for labels, weights, words in ((("low",), (), "one weight"), (("2",), (1.0,), "no such class"), (("lwo",), (1.0,), "low")):
        with pytest.raises(UserError, match=words):
            Composed(INFO, ComposedConfig(labels, weights), {"base": Gaussian()})
