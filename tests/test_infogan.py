"""InfoGAN: codes that are functions of a normal latent, the bound on their information, who is trained on it, and sampling by code."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from sklearn.metrics import mutual_info_score
from torch import Tensor

from pixelkiln.core.types import Ability, Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.data import open_source
from pixelkiln.engine.features import extractor_for
from pixelkiln.engine.loop import only
from pixelkiln.engine.measure import Ask, measure
from pixelkiln.engine.plan import Budget, Order
from pixelkiln.engine.sample import load
from pixelkiln.engine.train import train
from pixelkiln.engine.where import Where
from pixelkiln.methods.infogan import InfoGAN, InfoGANConfig, infogan
from pixelkiln.metrics import Agreement, mutual_information, purity
from pixelkiln.nets.codes import Codes, Recognizer, category_of, chosen, styles_of
from pixelkiln.nets.dcgan import DCGANNets
from pixelkiln.objectives.information import category_information, style_information
from pixelkiln.objectives.truncation import truncated

NOW = Moment(0, 1, 0)
CODES = Codes(4, 2)


def small(codes: Codes = CODES, **changes: Any) -> InfoGAN:
    torch.manual_seed(0)
    info = DataInfo(ImageShape(1, 16, 16), ("cat", "dog"))
    return InfoGAN(info, InfoGANConfig(nets=DCGANNets(8, 8), latent=12, codes=codes, reference=64, **changes)).train()


def images(n: int = 16) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def normal(n: int, d: int = 12) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(2))


# -- codes as functions of z


@pytest.mark.parametrize("categories", [2, 10])
def test_categories_are_uniform_and_independent_of_the_rest(categories: int) -> None:
    z = normal(40_000, 14)
    codes = Codes(categories, 2)
    category, styles = category_of(z, codes), styles_of(z, codes)
    assert stats.chisquare(torch.bincount(category, minlength=categories).numpy()).pvalue > 1e-3
    for style in styles.T:
        groups = [style[category == k].numpy() for k in range(categories)]
        assert stats.f_oneway(*groups).pvalue > 1e-3
    assert abs(float(torch.corrcoef(styles.T)[0, 1])) < 0.02


@pytest.mark.parametrize(("prior", "law"), [("uniform", stats.uniform(-1, 2)), ("normal", stats.norm())])
def test_styles_have_their_law_and_entropy(prior: Any, law: Any) -> None:
    codes = Codes(3, 1, prior)
    assert stats.kstest(styles_of(normal(20_000), codes)[:, 0].double().numpy(), law.cdf).pvalue > 1e-3
    assert codes.entropy == pytest.approx(float(law.entropy()))


@pytest.mark.parametrize("kind", ["resampled", "scaled", "narrowed"])
def test_truncation_leaves_the_category(kind: Any) -> None:
    z = normal(5000)
    assert torch.equal(category_of(truncated(z, 0.7, kind), CODES), category_of(z, CODES))


def test_a_chosen_category_keeps_everything_else() -> None:
    z = normal(2000)
    want = torch.arange(2000) % 4
    found = chosen(z, want, CODES)
    assert torch.equal(category_of(found, CODES), want)
    assert torch.equal(found[:, 4:], z[:, 4:])
    assert torch.equal(found[:, :4].sort(1).values, z[:, :4].sort(1).values)  # the same four numbers
    same = category_of(z, CODES) == want
    assert torch.equal(found[same], z[same])
    assert torch.equal(chosen(z, torch.full((2000,), -1), CODES), z)
    typical = z[category_of(z, CODES) == 2]  # the law given the category: number 0 of those that were moved to it, too
    moved = chosen(z, torch.full((2000,), 2), CODES)
    assert stats.ks_2samp(typical[:, 0].numpy(), moved[:, 0].numpy()).pvalue > 1e-3
    assert stats.ks_2samp(typical[:, 2].numpy(), moved[:, 2].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("gain", [1.0, 5.0])
def test_generator_is_given_the_codes_and_the_noise(gain: float) -> None:
    method = small(replace(CODES, gain=gain))
    seen: list[Tensor] = []
    method.generator.net.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    z = normal(5)
    method.generator(z)
    (given,) = seen
    assert given.shape == z.shape and torch.equal(given[:, 6:], z[:, 6:])
    assert torch.equal(given[:, :4], gain * torch.nn.functional.one_hot(z[:, :4].argmax(1), 4).float())
    torch.testing.assert_close(given[:, 4:6].double(), torch.from_numpy(2 * stats.norm.cdf(z[:, 4:6].double().numpy()) - 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("codes", [Codes(0, 0), Codes(1, 2), Codes(-1, 3), Codes(10, 3), Codes(4, 2, gain=0.0), Codes(4, 2, gain=math.inf), Codes(4, 2, gain=math.nan)])
def test_codes_that_do_not_fit_are_refused(codes: Codes) -> None:
    with pytest.raises(UserError, match=r"model\.codes"):
        small(codes)


# -- the bound


def test_bound_is_the_information_where_q_is_the_posterior() -> None:
    """Eq. 5 on a channel with known I: a uniform category seen right with probability 0.7, else as any of the others."""
    right, k = 0.7, 5
    p = torch.full((k, k), (1 - right) / (k - 1)).fill_diagonal_(right)
    gen = torch.Generator().manual_seed(0)
    code = torch.randint(0, k, (100_000,), generator=gen)
    seen = torch.multinomial(p[code], 1, generator=gen)[:, 0]
    exact = float(stats.entropy([1 / k] * k) - stats.entropy(p[0].numpy()))  # I = H(code) - H(code | seen), the channel being symmetric
    bound = float(category_information(p.log()[seen], code))
    assert bound == pytest.approx(exact, abs=0.01)
    assert float(category_information((p + 0.3).log()[seen], code)) < bound  # any other Q says less
    assert float(category_information(torch.zeros(100, k), code[:100])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_style_bound_is_a_gaussian_log_density(scale: float) -> None:
    torch.manual_seed(0)
    mean, s = torch.randn(50, 3), torch.randn(50, 3)
    expected = stats.norm.logpdf(s.numpy(), mean.numpy(), scale).sum(1).mean() + 3 * 0.25
    assert float(style_information(mean, math.log(scale), s, 0.25)) == pytest.approx(float(expected), rel=1e-5)
    raw = torch.full((50, 3), math.log(scale) + 0.3)
    floor = -4 + math.log1p(math.exp(math.log(scale) + 0.3 + 4))
    expected = stats.norm.logpdf(s.numpy(), mean.numpy(), math.exp(floor)).sum(1).mean() + 3 * 0.25
    assert float(style_information(mean, raw, s, 0.25)) == pytest.approx(float(expected), rel=1e-5)


def test_style_bound_of_a_noisy_reading_is_its_information() -> None:
    """A normal style read with noise of deviation 0.5: I = log(1 + 1 / 0.25) / 2, and the posterior is Gaussian."""
    torch.manual_seed(0)
    s = torch.randn(200_000, 1)
    seen = s + 0.5 * torch.randn_like(s)
    bound = style_information(seen / 1.25, 0.5 * math.log(0.25 / 1.25), s, Codes(0, 1, "normal").entropy)
    assert float(bound) == pytest.approx(0.5 * math.log(5), abs=0.01)


# -- who is trained on it


def test_only_generated_images_are_asked_about() -> None:
    method = small()
    assert not method.wants(torch.randn(4, method.discriminator.head.in_features), None, None)
    sizes: list[int] = []
    method.recognizer.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    terms = method.d_loss(Batch(images(8), Condition(label=torch.arange(8) % 2)), NOW)
    assert sizes == [8] and {"category_fake", "styles_fake"} <= set(terms) and "category" not in terms


def test_q_and_d_move_in_one_row_and_g_in_its_own() -> None:
    method = small()
    d, g = method.updates()
    assert (d.nets, g.nets) == (("discriminator", "recognizer"), ("generator",))
    for row in (d, g):
        method.zero_grad()
        with only(method, row.nets):
            row.loss(Batch(images()), NOW)["loss"].backward()
        moved = {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
        assert moved == set(row.nets)


@pytest.mark.parametrize("deviation", [0.0, 0.5])
def test_losses_are_the_games_minus_the_weighted_bounds(monkeypatch: pytest.MonkeyPatch, deviation: float) -> None:
    method = small(weight=0.7, style_weight=0.3, deviation=deviation)
    z, bare = normal(16), small(weight=0.0, style_weight=0.0, deviation=deviation)
    for m in (method, bare):
        monkeypatch.setattr(m, "random_latents", lambda n: z)
    found, plain = method.g_loss(Batch(images()), NOW), bare.g_loss(Batch(images()), NOW)
    _, h = small().discriminator(small().generator(z))
    logits, mean, spread = small().recognizer(h)
    onehot = logits.log_softmax(1)[torch.arange(16), z[:, :4].argmax(1)].mean() + math.log(4)
    sigma = torch.full_like(mean, 0.5) if deviation else (-4 + torch.log1p((spread + 4).exp())).exp()
    s = torch.erf(z[:, 4:6] / math.sqrt(2))
    gauss = torch.distributions.Normal(mean, sigma).log_prob(s).sum(1).mean() + 2 * math.log(2)
    assert float((found["loss"] - plain["loss"]).detach()) == pytest.approx(float((-0.7 * onehot - 0.3 * gauss).detach()), rel=1e-3, abs=1e-4)
    assert float(found["category"]) == pytest.approx(float(-0.7 * onehot.detach()), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("codes", [Codes(0, 2), Codes(4, 0)])
def test_one_kind_of_code_alone(codes: Codes) -> None:
    method = small(codes)
    terms = method.g_loss(Batch(images()), NOW)
    assert ("category" in terms, "styles" in terms) == (codes.categories > 0, codes.styles > 0)
    assert (Ability.LABEL in method.abilities) == (codes.categories > 0)
    assert method.sample(Request((0, 1))).shape == (2, 1, 16, 16)


def test_recognizer_is_fp32_under_autocast() -> None:
    q = Recognizer(20, CODES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = q(torch.randn(8, 20))
    assert [(t.dtype, tuple(t.shape)) for t in found] == [(torch.float32, (8, 4)), (torch.float32, (8, 2)), (torch.float32, (8, 2))]


# -- sampling


def test_a_label_is_a_code_and_none_is_that_of_z() -> None:
    method = small()
    seeds = tuple(range(12))
    own = category_of(method.latents(seeds), CODES)
    free = method.sample(Request(seeds))
    torch.testing.assert_close(method.sample(Request(seeds, Condition(label=own))), free)
    asked = method.sample(Request(seeds, Condition(label=(own + 1) % 4)))
    assert all(float((a - b).abs().max()) > 1e-4 for a, b in zip(asked, free, strict=True))
    assert method.info.classes == ("code-0", "code-1", "code-2", "code-3")  # not the data's two


def test_a_grid_of_codes_shares_its_noise_by_rows(tmp_path: Path) -> None:
    run = train(Order("infogan", "digits", tmp_path / "run", "tiny", Budget(steps=2)), Where("cpu", "fp32", False, 1))
    trained = load(run.path, "cpu", "fp32")
    assert trained.classes == tuple(f"code-{k}" for k in range(10)) and trained.invents
    request = trained.request(20, 5, "all", share=10)
    assert request.cond.label is not None and request.cond.label.tolist() == [*range(10)] * 2
    assert len(set(request.seeds[:10])) == 1 and len(set(request.seeds)) == 2
    assert request.seeds[::10] == trained.request(2, 5).seeds  # row i of the grid is sample i otherwise
    assert trained.request(3).cond.label is None  # classes that the data know nothing of are not drawn as in the data
    assert trained.sample(4, label="code-3").shape == (4, 1, 16, 16)
    assert trained.interpolate(5, label=2).shape == (5, 1, 16, 16)


def test_other_methods_still_draw_labels_as_in_the_data(tmp_path: Path) -> None:
    run = train(Order("cgan", "digits", tmp_path / "run", "tiny", Budget(steps=2)), Where("cpu", "fp32", False, 1))
    trained = load(run.path, "cpu", "fp32")
    assert not trained.invents and trained.request(50).cond.label is not None


# -- agreement of codes and classes


def test_agreement_is_sklearns_and_what_is_counted_by_hand() -> None:
    gen = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 7, (3000,), generator=gen)
    codes = torch.where(torch.rand(3000, generator=gen) < 0.6, (classes * 3 + 1) % 7, torch.randint(0, 9, (3000,), generator=gen))
    assert mutual_information(codes, classes) == pytest.approx(mutual_info_score(codes.numpy(), classes.numpy()), rel=1e-6)
    commonest = sum(max(int(((codes == k) & (classes == c)).sum()) for c in range(7)) for k in range(9))
    assert purity(codes, classes) == pytest.approx(commonest / 3000)
    assert purity(classes, (classes * 3 + 1) % 7) == 1 and mutual_information(torch.zeros(9).long(), torch.arange(9)) == 0
    with pytest.raises(ValueError, match="at least one"):
        purity(torch.zeros(0).long(), torch.zeros(0).long())


def test_agreement_in_parts_is_that_of_the_whole() -> None:
    """However many labels a part has; unknown labels do not count."""
    gen = torch.Generator().manual_seed(1)
    labels, classes = torch.randint(-1, 9, (500,), generator=gen), torch.randint(0, 5, (500,), generator=gen)
    whole = Agreement(5).update(labels, classes)
    parts = [Agreement(5).update(labels[part], classes[part]) for part in (slice(0, 3), slice(3, 3), slice(3, 400), slice(400, 500))]
    for first, *rest in (parts, parts[::-1]):
        found = Agreement(5).merge(first)
        for part in rest:
            found.merge(part)
        assert torch.equal(found.counts, whole.counts)
    known = labels >= 0
    assert whole.num == int(known.sum()) and whole.right == int((labels == classes)[known].sum())
    assert whole.purity == purity(labels[known], classes[known])


@pytest.mark.parametrize(("labels", "classes", "message"), [([0, 1], [0], "one of each"), ([0], [5], r"classes 0\.\.4"), ([0], [-1], r"classes 0\.\.4")])
def test_agreement_refuses(labels: list[int], classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Agreement(5).update(torch.tensor(labels), torch.tensor(classes))
    with pytest.raises(ValueError, match="cannot be merged"):
        Agreement(5).merge(Agreement(4))


def test_codes_and_digits_are_compared_by_evaluate(tmp_path: Path) -> None:
    """Of codes that are asked for; without, nobody knows what the samples were to be."""
    run = train(Order("infogan", "digits", tmp_path / "run", "tiny", Budget(steps=2)), Where("cpu", "fp32", False, 1))
    trained = load(run.path, "cpu", "fp32")
    found = {r.name: r for r in measure(trained, num=40, ask=Ask(("purity", "label-nats")), label="all").report.results}
    verdicts = extractor_for(open_source("digits")).predict(trained.sample(40, label="all"))
    codes = torch.arange(40) % 10
    assert found["purity"].value == pytest.approx(purity(codes, verdicts)) and found["label-nats"].value == pytest.approx(mutual_information(codes, verdicts))
    assert found["purity"].floor is not None and found["purity"].floor > 0.8  # of real digits and their labels
    assert found["purity"].protocol["labels"] == 10
    with pytest.raises(UserError, match="purity needs the labels, or codes.*--label all"):
        measure(trained, num=40, ask=Ask(("purity",)))


def test_a_run_of_before_keeps_its_category_as_quiet(tmp_path: Path) -> None:
    """Its recipe.json has no gain: it was trained with 1."""
    run = train(Order("infogan", "digits", tmp_path / "run", "tiny", Budget(steps=2)), Where("cpu", "fp32", False, 1))
    facts = json.loads(run.recipe_file.read_text())
    assert facts["stages"][0]["model"]["codes"].pop("gain") == 5.0
    run.recipe_file.write_text(json.dumps(facts))
    method = load(run.path, "cpu", "fp32").method
    assert isinstance(method, InfoGAN) and method.codes.gain == 1.0


def test_recipe() -> None:
    for size in ("tiny", "small", "base"):
        stage = infogan(size).last
        method = stage.method(DataInfo(ImageShape(1, 16, 16)), replace(stage.model, nets=DCGANNets(8, 8)))
        assert {row.opt for row in method.updates()} == set(stage.train.opts)
        assert all(opt.betas == (0.5, 0.999) for opt in stage.train.opts.values())
    assert (stage.train.opts["d"].lr, stage.train.opts["g"].lr, stage.model.latent) == (2e-4, 1e-3, 74)  # appendix C.1


@pytest.mark.learns
def test_codes_find_the_modes() -> None:
    """Two kinds of images without labels: after some seconds the two codes are the two kinds."""
    torch.manual_seed(0)
    method = InfoGAN(DataInfo(ImageShape(1, 8, 8)), InfoGANConfig(nets=DCGANNets(8, 8), latent=8, codes=Codes(2, 0), reference=128))
    left = torch.full((1, 8, 8), -1.0)
    left[..., :4] = 1.0
    modes = torch.stack([left, left.flip(-1)])
    opts = {row.opt: torch.optim.Adam([p for n in row.nets for p in getattr(method, n).parameters()], 2e-3, betas=(0.5, 0.999)) for row in method.updates()}
    for _ in range(400):
        for row in method.updates():
            opts[row.opt].zero_grad()
            with only(method, row.nets):
                row.loss(Batch(modes[torch.randint(0, 2, (32,))]), NOW)["loss"].backward()
                opts[row.opt].step()
    label = torch.arange(60) % 2
    samples = method.sample(Request(tuple(range(60)), Condition(label=label)))
    distance, mode = (samples[:, None] - modes[None]).square().mean((2, 3, 4)).min(1)
    assert float(distance.median()) < 0.2
    assert purity(label, mode) > 0.9 and mutual_information(label, mode) > 0.4
