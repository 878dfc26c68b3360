"""Priors after the fact: EM against scikit-learn, densities against quadrature and their own samples, and what they do for an autoencoder that needs one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, multivariate_normal
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from torch import Tensor

from commands import pixelkiln
from pixelkiln.core.catalog import builtin
from pixelkiln.core.protocols import Fit, Method
from pixelkiln.core.rng import generator
from pixelkiln.core.types import Ability, Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.data import open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.sample import load
from pixelkiln.methods.cvae import CVAE, CVAEConfig
from pixelkiln.methods.latent_prior import FlowConfig, GMMConfig, LatentPrior, LatentPriorConfig, NormalConfig, VampConfig
from pixelkiln.methods.pca import PCA, PCAConfig
from pixelkiln.methods.vae import VAE, VAEConfig
from pixelkiln.methods.wae import WAE, WAEConfig
from pixelkiln.objectives.mixtures import expectation_maximization, log_components, maximize, spread
from pixelkiln.objectives.variational import log_normal

CLASSES = ("a", "b", "c")
SMALL = VAEConfig(latent=2, net="mlp", width=16, depth=1, likelihood="gaussian")
DENSITIES = {"gmm": GMMConfig(3), "diagonal": GMMConfig(3, "diagonal"), "vamp": VampConfig(4), "flow": FlowConfig(8, 4), "normal": NormalConfig()}
CHOSEN = ["--precision", "fp32", "--layout", "contiguous", "--quiet", "--size", "tiny"]


def parent(kind: str = "vae", classes: tuple[str, ...] = CLASSES) -> Method:
    """An untrained autoencoder of 4 x 4 images with codes of two numbers that vary, and posteriors of different widths."""
    torch.manual_seed(0)
    info = DataInfo(ImageShape(1, 4, 4), classes)
    if kind == "cvae":
        made: Method = CVAE(info, CVAEConfig(latent=2, net="mlp", width=16, depth=1, likelihood="gaussian"))
    elif kind == "wae":
        made = WAE(info, WAEConfig(latent=2, net="mlp", width=16, depth=1))
    elif kind == "pca":
        made = PCA(info, PCAConfig(2))
        made.fit(lambda: [images()])
    else:
        made = VAE(info, replace(SMALL, prior="flow" if kind == "flow" else "normal", flow_width=8, flow_layers=3))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


def images(n: int = 300) -> Batch:
    """Images of three classes, each of its own brightness."""
    gen = torch.Generator().manual_seed(1)
    label = torch.arange(n) % 3
    x = (torch.rand(n, 1, 4, 4, generator=gen) * 0.8 - 0.4 + (label - 1.0)[:, None, None, None] * 0.6).clamp(-1, 1)
    return Batch(((x + 1) * 127.5).round() / 127.5 - 1, Condition(label=label))


def fitted(density: str, kind: str = "vae", steps: int = 30, **changes: object) -> LatentPrior:
    torch.manual_seed(0)
    codec = parent(kind)
    made = LatentPrior(codec.info, LatentPriorConfig(DENSITIES[density], **changes), {"codec": codec})  # type: ignore[arg-type]
    data = images()
    with torch.no_grad():
        for row in made.updates():
            if hasattr(row, "run"):
                row.run(lambda: [Batch(data.x[:170], data.cond.take(slice(0, 170))), Batch(data.x[170:], data.cond.take(slice(170, None)))])
    if density == "flow":
        opt = torch.optim.Adam(made.density.parameters(), 1e-2)
        for k in range(steps):
            opt.zero_grad()
            made.loss(data, Moment(k, steps, 0))["loss"].backward()
            opt.step()
    return made.eval()


@pytest.mark.parametrize("full", [True, False])
def test_em_is_scikit_learns(full: bool) -> None:
    """From the same start, round for round: weights, means, covariances and the likelihood, on three clusters that overlap."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.multivariate_normal(m, c, n) for m, c, n in (([0, 0, 1], np.diag([1, 2, 0.3]), 200), ([2, 1, 0], np.eye(3) + 0.6, 300),
                                                                         ([-1, 2, 0], np.eye(3) * 0.4, 100))])
    points = torch.from_numpy(z)
    start = spread(points, 3, generator(0))
    first = maximize(points, start, full, 1e-6)
    ours, seen = expectation_maximization(points, start, full, 1e-6, most=500, tolerance=1e-8)
    precisions = (first.white.mT @ first.white if full else first.white**2).numpy()
    theirs = GaussianMixture(3, covariance_type="full" if full else "diag", tol=1e-8, reg_covar=1e-6, max_iter=500, random_state=0,
                             weights_init=first.weights.numpy() / float(first.weights.sum()), means_init=first.means.numpy(), precisions_init=precisions).fit(z)
    assert len(seen) > 10 and (np.diff(seen) > -1e-7).all(), "the likelihood never falls"
    assert seen[-1] == pytest.approx(theirs.score(z), abs=1e-6)
    np.testing.assert_allclose(ours.weights, theirs.weights_, atol=1e-3)
    np.testing.assert_allclose(ours.means, theirs.means_, atol=1e-2)
    found = torch.logsumexp(log_components(points, ours.means, ours.white) + ours.weights.log(), 1).numpy()
    np.testing.assert_allclose(found, theirs.score_samples(z), atol=2e-3)


def test_a_component_is_scipys_gaussian() -> None:
    z = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 0, 0], [0.5, 2, 0], [0, 0.3, 0.1]]).double()
    one = maximize(z, torch.ones(50, 1, dtype=torch.float64), True, 0.0)
    expected = multivariate_normal(z.mean(0).numpy(), np.cov(z.numpy().T, bias=True)).logpdf(z.numpy())
    np.testing.assert_allclose(log_components(z, one.means, one.white)[:, 0], expected, atol=1e-9)


def test_k_means_plus_plus_finds_far_clusters() -> None:
    centers = torch.tensor([[0.0, 0], [50, 0], [0, 50], [50, 50]]).double()
    z = (centers[:, None] + torch.randn(4, 25, 2, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    for seed in range(5):
        r = spread(z, 4, generator(seed))
        assert sorted(r.sum(0).tolist()) == [25] * 4
        assert all(len(r[25 * k : 25 * k + 25].argmax(1).unique()) == 1 for k in range(4))


def plane(span: float = 12.0, side: int = 321) -> tuple[Tensor, float]:
    """Points (side^2, 2) of a square, and the area of each."""
    axis = torch.linspace(-span, span, side)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize(("density", "label"), [(name, label) for name in DENSITIES for label in (None, 1) if label is None or name != "normal"])
def test_a_density_integrates_to_one_and_samples_follow_it(density: str, label: int | None) -> None:
    made = fitted(density)
    given = None if label is None else torch.tensor([label])
    points, area = plane()
    with torch.no_grad():
        p = made.log_codes(points, None if given is None else given.expand(len(points))).exp() * area
        z = made.codes_of(made.latents(range(4000)), None if given is None else given.expand(4000))
    assert float(p.sum()) == pytest.approx(1, abs=2e-3)
    edges = torch.stack([torch.quantile(z[:, j], torch.linspace(0, 1, 6)[1:-1]) for j in range(2)])  # (2, 4): five bins an axis

    def cells(points: Tensor) -> Tensor:
        return 5 * torch.searchsorted(edges[0], points[:, 0].contiguous()) + torch.searchsorted(edges[1], points[:, 1].contiguous())

    expected = torch.zeros(25).index_add_(0, cells(points), p).double()
    expected /= expected.sum()
    counts = cells(z).bincount(minlength=25)
    big = expected * 4000 > 5
    rest = [float(expected[~big].sum() * 4000)] if (~big).any() and expected[~big].sum() * 4000 > 1 else []
    observed = [*counts[big].tolist(), *([float(counts[~big].sum())] if rest else [])]
    wanted = np.array([*(expected[big] * 4000).tolist(), *rest])
    assert chisquare(observed, wanted * sum(observed) / wanted.sum()).pvalue > 1e-4


@pytest.mark.parametrize("density", ["gmm", "vamp", "flow"])
def test_without_a_label_it_is_the_mixture_over_classes(density: str) -> None:
    made, z = fitted(density), torch.randn(20, 2)
    each = torch.stack([made.log_codes(z, torch.full((20,), y)) for y in range(3)])
    torch.testing.assert_close(made.log_codes(z, None), torch.logsumexp(each, 0) - np.log(3))
    assert (each[0] - each[1]).abs().max() > 0.1


def test_vamp_is_made_of_posteriors() -> None:
    """With as many components as images it is the aggregate posterior: the mean of all q(z|x_k), by hand."""
    codec, data = parent(), images(12)
    assert isinstance(codec, VAE)
    made = LatentPrior(codec.info, LatentPriorConfig(VampConfig(12), by_class=False), {"codec": codec})
    with torch.no_grad():
        torch.manual_seed(5)
        u = torch.rand(data.x.shape)
        mean, log_var = codec.posterior(codec.observed(data.x, u))
        torch.manual_seed(5)
        made.fit(lambda: [data])
        z = torch.randn(7, 2)
        expected = torch.logsumexp(log_normal(z[:, None], mean, log_var), 1) - np.log(12)
        torch.testing.assert_close(made.log_codes(z, None), expected)


def test_codes_are_draws_or_means() -> None:
    drawn, meant = fitted("gmm"), fitted("gmm", codes="mean")
    x = images(200).x
    codec = drawn.parents["codec"]
    assert isinstance(codec, VAE)
    with torch.no_grad():
        mean, log_var = codec.posterior(codec.observed(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(3))))
        found = drawn.coded(x, None, torch.Generator().manual_seed(3)).z
        assert torch.equal(meant.coded(x, None, torch.Generator().manual_seed(3)).z, mean)
    e = (found - mean) / (0.5 * log_var).exp()
    assert e.mean(0).abs().max() < 0.3 and (e.std(0) - 1).abs().max() < 0.2


def test_the_score_is_that_of_one_code_an_image() -> None:
    made, x = fitted("normal"), images(50).x
    score = made.log_prob(x, 100, torch.Generator().manual_seed(7))
    z = made.coded(x, None, torch.Generator().manual_seed(7)).z
    np.testing.assert_allclose(score.nats, multivariate_normal(np.zeros(2)).logpdf(z.numpy()), rtol=1e-5)
    assert score.per_dim is None and "2 numbers" in score.of


def test_images_are_painted_of_codes_in_the_coordinates_in_which_they_were_encoded() -> None:
    """Of a vae with a learned prior, codes are u and posteriors are of z = g(u)."""
    codec = parent("flow")
    assert isinstance(codec, VAE)
    u = torch.randn(5, 2)
    torch.testing.assert_close(codec.paint(codec.prior(u)), codec.decode(u))
    made = fitted("gmm", "flow")
    request = Request(tuple(range(5)), Condition(label=torch.tensor([0, 1, 2, 0, 1])))
    expected = codec.paint(made.codes_of(made.latents(request.seeds), request.cond.label))
    torch.testing.assert_close(made.sample(request), expected)


def test_a_codec_that_takes_labels_is_told_them() -> None:
    """A cvae's codes depend on the label, and so do its images; codes of images without labels have a mixture of their own."""
    made = fitted("gmm", "cvae")
    codec = made.parents["codec"]
    assert isinstance(codec, CVAE) and made.labeled and made.density.weights.shape == (4, 12)
    each = torch.stack([made.log_codes(torch.zeros(1, 2), torch.tensor([y])) for y in (0, 1, 2)])
    assert not torch.allclose(made.log_codes(torch.zeros(1, 2), None), torch.logsumexp(each, 0) - np.log(3), atol=1e-3)
    label = torch.tensor([2, 0])
    z = made.codes_of(made.latents((1, 2)), label)
    torch.testing.assert_close(made.sample(Request((1, 2), Condition(label=label))), codec.paint(z, label))
    assert not torch.allclose(codec.paint(z, label), codec.paint(z))


def test_any_codec_of_vectors_will_do() -> None:
    made = fitted("gmm", "pca")
    assert made.sample(Request((0, 1, 2))).shape == (3, 1, 4, 4)
    assert fitted("flow", "wae").sample(Request((0,))).isfinite().all()


def built(config: LatentPriorConfig, codec: Method, info: DataInfo | None = None) -> LatentPrior:
    return LatentPrior(info or codec.info, config, {"codec": codec})


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="these are points"):
        built(LatentPriorConfig(VampConfig()), parent("wae"))
    with pytest.raises(UserError, match="these are points"):
        built(LatentPriorConfig(VampConfig(), codes="mean"), parent())
    with pytest.raises(UserError, match="is no vector"):
        built(LatentPriorConfig(), make(builtin()["vqvae"]("tiny").last, DataInfo(ImageShape(1, 8, 8)), {}, 0))
    with pytest.raises(UserError, match="give the data that it was trained on"):
        built(LatentPriorConfig(), parent(), DataInfo(ImageShape(1, 8, 8)))
    with pytest.raises(UserError, match="labels of other classes"):
        built(LatentPriorConfig(), parent("cvae"), DataInfo(ImageShape(1, 4, 4)))
    with pytest.raises(UserError, match="drop above 0"):
        built(LatentPriorConfig(FlowConfig(drop=0)), parent())
    with pytest.raises(UserError, match="components must be"):
        built(LatentPriorConfig(GMMConfig(0)), parent())
    with pytest.raises(UserError, match="100 images of class a are too few for 200 components"):
        built(LatentPriorConfig(GMMConfig(200)), parent()).fit(lambda: [images()])


@pytest.mark.parametrize("density", ["gmm", "flow"])
def test_without_a_label_classes_come_as_often_as_in_the_data(density: str) -> None:
    """The first number of the latent chooses; what is drawn is of one of the classes, exactly as if it had been asked for."""
    codec, data = parent(), images()
    rare = Batch(data.x[data.cond.label != 2][:120], Condition(label=torch.arange(120) % 2))  # type: ignore[index]
    rare = Batch(torch.cat([rare.x, data.x[2::3][:40]]), Condition(label=torch.cat([rare.cond.label, torch.full((40,), 2)])))  # type: ignore[list-item]
    made = built(LatentPriorConfig(GMMConfig(1) if density == "gmm" else FlowConfig(8, 2)), codec)
    for row in made.updates():
        if isinstance(row, Fit):
            with torch.no_grad():
                row.run(lambda: [rare])
    if density == "flow":
        with torch.no_grad():
            for p in made.density.parameters():
                p.add_(0.3 * torch.randn_like(p))
    e = made.latents(range(2000))
    with torch.no_grad():
        z = made.codes_of(e, None)
        each = torch.stack([made.codes_of(e, torch.full((2000,), y)) for y in range(3)])
        same = ((each - z).abs().amax(2) < 1e-5).double()  # (3, 2000)
    assert (same.sum(0) == 1).all()
    np.testing.assert_allclose(same.mean(1), [0.375, 0.375, 0.25], atol=0.04)


def test_n_0_i_knows_no_class() -> None:
    assert fitted("normal").abilities == frozenset() and fitted("normal", "cvae").abilities == {Ability.LABEL}


def test_images_without_classes() -> None:
    codec = parent(classes=())
    made = built(LatentPriorConfig(GMMConfig(2)), codec)
    made.fit(lambda: [Batch(images().x)])
    assert made.abilities == frozenset() and made.density.weights.shape == (1, 2)
    with pytest.raises(UserError, match="label"):
        made.sample(Request((0,), Condition(label=torch.tensor([0]))))
    assert Ability.LABEL not in built(LatentPriorConfig(GMMConfig(2), by_class=False), parent()).abilities


def test_weights_are_finite_and_plain() -> None:
    """What is not finite would end a training, and a weight of 0 is one."""
    made = fitted("gmm")
    assert all(value.isfinite().all() for value in made.state_dict().values())
    assert isinstance(made.density.weights, Tensor) and (made.density.weights.sum(1) - 1).abs().max() < 1e-5
    assert (made.density.weights == 0).sum() == 3 * 6



def nats(run: Path) -> float:
    """The mean of log p(z) of the codes of the digits' test images."""
    trained = load(run, precision="fp32")
    test = open_source("digits", trained.opened.stage.data, "test")
    assert isinstance(trained.method, LatentPrior)
    return float(trained.method.log_prob(test.images.float() / 127.5 - 1, 1, generator(0)).nats.mean())


@pytest.mark.learns
def test_digits_of_an_autoencoder_without_any_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wae without its penalty has codes that look nothing like N(0, I). Given one, its samples are digits of the class that is asked for, and without, not."""
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    words = ("--data", "digits", *CHOSEN)
    assert pixelkiln("train", "wae", "--out", tmp_path / "wae", "--steps", 600, "--model.penalty", 0, "--model.latent", 8, "--model.net", "mlp", "--model.width", 128,
                     "--model.depth", 1, *words) == 0
    for name, more in (("gmm", ()), ("flow", ("--steps", 400, "--model.density.width", 32, "--model.density.layers", 4)), ("normal", ("--model.density", "normal"))):
        recipe = "flow-prior" if name == "flow" else "gmm-prior"
        assert pixelkiln("train", recipe, "--parent", f"codec={tmp_path / 'wae'}", "--out", tmp_path / name, *more, *CHOSEN) == 0
    assert nats(tmp_path / "gmm") > nats(tmp_path / "normal") + 3
    assert nats(tmp_path / "flow") > nats(tmp_path / "normal") + 3
    real = open_source("digits", load(tmp_path / "wae").opened.stage.data, "train")
    reader = LogisticRegression(max_iter=300).fit(real.images.flatten(1).numpy() / 255, real.labels.numpy())  # type: ignore[union-attr]
    right = {}
    for name in ("gmm", "flow"):
        assert pixelkiln("sample", tmp_path / name, "--label", "all", "-n", 200, "--out", tmp_path / f"{name}.npz", "--quiet") == 0
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as f:
            right[name] = float((reader.predict(f["images"].reshape(200, -1) / 255) == f["labels"]).mean())
    assert min(right.values()) > 0.75, right
    sure = {}
    for run in ("wae", "gmm"):  # how sure the reader is of a sample, whatever it is taken for
        x = load(tmp_path / run, precision="fp32").sample(200).flatten(1).numpy() / 255
        sure[run] = float(reader.predict_proba(x).max(1).mean())
    assert sure["gmm"] > sure["wae"] + 0.03, sure
    told = json.loads((tmp_path / "gmm" / "metrics.jsonl").read_text().splitlines()[0])
    assert isinstance(told, Mapping) and told["components"] == 20

