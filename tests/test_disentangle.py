"""MIG, DCI and SAP against scikit-learn and brute force, on codes of which it is known what they hold; and what each is blind to."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import balanced_accuracy_score, mutual_info_score, r2_score
from torch import Tensor

from pixelkiln.core.recipe import DataConfig
from pixelkiln.data import ImageSet, open_source
from pixelkiln.data.shapes import COLORS, KINDS, draw, scenes
from pixelkiln.metrics import dci, mig, sap
from pixelkiln.metrics.disentangle import _binned, _thresholds, _unmixed, mutual_information

N = 1200


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def world() -> dict[str, Tensor]:
    """Independent factors: two of categories, two of quantities."""
    g = gen()
    return {"kind": torch.randint(3, (N,), generator=g), "color": torch.randint(5, (N,), generator=g),
            "x": torch.rand(N, generator=g), "size": torch.rand(N, generator=g)}


def aligned() -> Tensor:
    """Codes that are the factors, in another order, scaled, with a unit that holds nothing."""
    v = world()
    return torch.stack([-3 * v["x"], v["color"].float(), torch.randn(N, generator=gen(1)), 2 * v["kind"].float() + 7, v["size"]], dim=1)


def turned(codes: Tensor) -> Tensor:
    z = (codes - codes.mean(0)) / codes.std(0)
    return z @ torch.linalg.qr(torch.randn(z.shape[1], z.shape[1], generator=gen(2))).Q


def noise(units: int = 5) -> Tensor:
    return torch.randn(N, units, generator=gen(3))


def test_mutual_information_is_scikit_learns_of_the_same_bins() -> None:
    v, z = world(), turned(aligned())
    edges = np.histogram_bin_edges(z[:, 0].double().numpy(), 20)
    bins = np.clip(np.digitize(z[:, 0].double().numpy(), edges[1:-1]), 0, 19)
    assert np.array_equal(_binned(z[:, 0].double(), 20).numpy(), bins)
    for other in (v["kind"], v["color"], _binned(v["size"].double(), 20)):
        assert mutual_information(torch.from_numpy(bins), other) == pytest.approx(mutual_info_score(bins, other.numpy()), abs=1e-10)


def test_mig_is_the_gap_of_scikit_learns_information() -> None:
    v, z = world(), turned(aligned()).double()
    for name, factor in v.items():
        values = factor if name in ("kind", "color") else _binned(factor.double(), 20)
        known = sorted((mutual_info_score(_binned(u, 20).numpy(), values.numpy()) for u in z.T), reverse=True)
        entropy = mutual_info_score(values.numpy(), values.numpy())
        assert mig(z, v).factors[name] == pytest.approx((known[0] - known[1]) / entropy, abs=1e-10)
    assert mig(z, v).value == pytest.approx(np.mean(list(mig(z, v).factors.values())))


def test_aligned_codes_score_high_turned_ones_low_and_noise_nothing() -> None:
    v = world()
    best, mixed, none = ((mig(z, v), sap(z, v), dci(z, v)) for z in (aligned(), turned(aligned()), noise()))
    assert best[0].value > 0.9  # less than 1 by the bias of the information of unrelated units
    assert best[1].factors["x"] > 0.95
    assert best[1].factors["kind"] == pytest.approx(1 - 1 / 3, abs=0.06)  # thresholds reach 1 for one unit and 1/K for the others
    assert best[1].factors["color"] == pytest.approx(1 - 1 / 5, abs=0.06)
    assert min(best[2].disentanglement, best[2].completeness.value, best[2].informativeness.value) > 0.95
    assert mixed[0].value < 0.15
    assert mixed[1].value < 0.25
    assert max(mixed[2].disentanglement, mixed[2].completeness.value) < 0.5
    assert mixed[2].informativeness.value > 0.5, "a rotation loses nothing"
    assert none[0].value < 0.03
    assert none[1].value < 0.03
    assert max(none[2].disentanglement, none[2].completeness.value) < 0.15
    assert none[2].informativeness.value < 0.05


def test_thresholds_are_the_best_ones_by_brute_force() -> None:
    g = gen(4)
    for classes, num in ((2, 12), (3, 8)):
        for _ in range(3):
            z = torch.randint(5, (num, 2), generator=g).double()  # with ties
            y = torch.cat([torch.arange(classes), torch.randint(classes, (num - classes,), generator=g)])
            for unit, found in enumerate(_thresholds(z, y).tolist()):
                values = z[:, unit].unique().tolist()
                cuts = [(a + b) / 2 for a, b in zip(values, values[1:], strict=False)]
                best = 0.0
                for used in range(classes):
                    for chosen in combinations(cuts, used):
                        part = torch.bucketize(z[:, unit].contiguous(), torch.tensor(chosen, dtype=torch.float64))
                        for said in product(range(classes), repeat=used + 1):
                            best = max(best, balanced_accuracy_score(y.numpy(), torch.tensor(said)[part].numpy()))
                assert found == pytest.approx(best, abs=1e-12)


def test_sap_of_quantities_is_the_gap_of_the_lines_r2() -> None:
    v, z = world(), turned(aligned())
    found = sap(z, v)
    for name in ("x", "size"):
        y = v[name].double().numpy()
        lines = (LinearRegression().fit(u[:, None], y).predict(u[:, None]) for u in z.T.double().numpy())
        first, second, *_ = sorted((r2_score(y, line) for line in lines), reverse=True)
        assert found.factors[name] == pytest.approx(first - second, abs=1e-9)


def test_shares_are_unmixed_as_the_entropy_says() -> None:
    rows = torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 0], [2, 1, 0]], dtype=torch.float64)
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)) / np.log(3)
    assert _unmixed(rows).tolist() == pytest.approx([1, 0, 0, 1 - entropy], abs=1e-12)


def test_dci_weighs_units_by_what_they_hold() -> None:
    found = dci(aligned(), world())
    assert torch.allclose(found.importance.sum(0), torch.ones(4, dtype=torch.float64))
    assert found.importance[2].max() < 0.02, "the unit that holds nothing"
    shares = found.importance / found.importance.sum(1, keepdim=True)
    units = 1 + (shares * shares.clamp_min(1e-300).log()).sum(1) / np.log(4)
    assert found.disentanglement == pytest.approx(float((units * found.importance.sum(1)).sum() / 4), abs=1e-9)


def test_the_order_of_units_and_their_affine_scales_do_not_matter() -> None:
    v, z = world(), turned(aligned()).double()
    order = torch.tensor([3, 0, 4, 1, 2])
    for other in (z[:, order], z * torch.tensor([2.0, 0.25, 8, 1, 0.5]), 4 * z):  # powers of 2: exact
        assert mig(other, v).factors == pytest.approx(mig(z, v).factors, abs=1e-12)
        assert sap(other, v).factors == pytest.approx(sap(z, v).factors, abs=1e-12)
    assert dci(4 * z, v) .disentanglement == pytest.approx(dci(z, v).disentanglement, abs=1e-9)
    assert dci(z[:, order], v).completeness.value == pytest.approx(dci(z, v).completeness.value, abs=0.03)  # ties are broken by place
    kinds = {name: v[name] for name in ("kind", "color")}
    assert sap(z.exp(), kinds).factors == pytest.approx(sap(z, kinds).factors, abs=1e-12), "thresholds see ranks alone"
    rows = torch.randperm(N, generator=gen(5))
    assert mig(z[rows], {k: x[rows] for k, x in v.items()}).factors == pytest.approx(mig(z, v).factors, abs=1e-12)
    named_anew = {"kind": v["kind"] * 10 + 3, "color": 4 - v["color"]}
    assert sap(z, named_anew).factors == pytest.approx(sap(z, kinds).factors, abs=1e-12)


def test_what_they_are_blind_to() -> None:
    v, z = world(), aligned()
    twice = torch.cat([z, z[:, :1]], dim=1)  # x is held by two units, each perfectly
    assert mig(twice, v).factors["x"] == pytest.approx(0, abs=1e-12)
    assert sap(twice, v).factors["x"] == pytest.approx(0, abs=1e-12)
    assert mig(twice, v).factors["kind"] > 0.9
    assert dci(twice, v).disentanglement > 0.95, "each unit holds one factor, nevertheless"
    both = (v["kind"] * 5 + v["color"]).float()[:, None]  # one unit holds two factors: the gap of each is large
    joint = {"kind": v["kind"], "color": v["color"]}
    with_noise = torch.cat([both, noise(3)], dim=1)
    assert mig(with_noise, joint).value > 0.9
    assert dci(with_noise, joint).disentanglement < 0.1
    angle = 2 * np.pi * v["x"]
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)  # the factor is there, in two units
    assert mig(circle, {"x": v["x"]}).value < 0.1
    assert dci(circle, {"x": v["x"], "y": v["x"]}).informativeness.value > 0.95
    bent = (v["x"][:, None] - 0.5).square()
    assert sap(bent, {"x": v["x"]}).value < 0.01, "a line sees no parabola"
    assert mig(bent, {"x": v["x"]}).value > 0.5
    assert mig(z[:, :1], {"x": v["x"]}).value == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("codes", "factors", "says"),
    [
        (noise(), {}, "at least one factor"),
        (noise(), {"x": torch.rand(7)}, "one value of x a code"),
        (noise(), {"x": torch.full((N,), torch.nan)}, "x is not finite"),
        (noise(), {"x": torch.ones(N)}, "x is the same in all images"),
        (noise(), {"k": torch.zeros(N, dtype=torch.int64)}, "k is the same"),
        (noise(), {"k": torch.arange(N)}, "images for each of the 1200 values"),
        (noise()[None], {"x": torch.rand(N)}, "needs features"),
        (noise() / 0, {"x": torch.rand(N)}, "not finite"),
    ],
)
def test_what_cannot_be_scored_is_named(codes: Tensor, factors: dict[str, Tensor], says: str) -> None:
    for score in (mig, sap, dci):
        with pytest.raises(ValueError, match=says):
            score(codes, factors)


def test_dci_needs_two_of_each() -> None:
    with pytest.raises(ValueError, match="two units and two factors"):
        dci(noise(1), world())
    with pytest.raises(ValueError, match="two units and two factors"):
        dci(noise(), {"x": world()["x"]})
    assert mig(noise(1), world()).value < 0.05  # the second best of one unit is nothing


def test_a_unit_that_does_not_vary_holds_nothing() -> None:
    z = torch.cat([aligned(), torch.full((N, 2), 3.0)], dim=1)
    assert sap(z, world()).factors == pytest.approx(sap(aligned(), world()).factors, abs=1e-12)
    assert sap(torch.ones(N, 2), world()).value == mig(torch.ones(N, 2), world()).value == 0
    assert dci(torch.ones(N, 2), world()).disentanglement == 0


@cache
def shapes() -> ImageSet:
    return open_source("shapes", DataConfig(), "test")


def test_factors_of_shapes_are_those_of_the_pixels() -> None:
    data = shapes()
    found, rows = data.factors, range(200)
    mask = draw(scenes("test", rows), 128)[1][:, 0] == 1  # the largest object
    assert torch.equal(found["shape"], data.labels)
    assert torch.equal(found["objects"], (data.extras["layout"][:, :, 0] >= 0).sum(1))
    area = mask.sum((1, 2)) / 128**2  # a shape of size s covers s^2
    assert (area.sqrt() - found["size"][rows]).abs().max() < 0.01
    ticks = (torch.arange(128) + 0.5) / 128
    centers = {"x": (mask.sum(1) * ticks).sum(1), "y": (mask.sum(2) * ticks).sum(1)}
    for axis, total in centers.items():
        assert (total / mask.sum((1, 2)) - found[axis][rows]).abs().max() < 0.01
    for text, shape, color, ground in zip(data.texts, found["shape"], found["color"], found["background"], strict=True):
        assert f"{list(COLORS)[color]} {list(KINDS)[shape]}" in " ".join(text.split()[1:3])
        assert text.endswith(f" {list(COLORS)[ground]} background") or list(COLORS)[ground] == "white"


def test_factors_follow_their_images_and_leave_the_digest_alone() -> None:
    data = shapes()
    rows = torch.tensor([5, 0, 1999])
    some = data.take(rows)
    assert all(torch.equal(some.factors[name], values[rows]) for name, values in data.factors.items())
    plain = ImageSet(some.images, some.labels, some.classes, some.texts)
    assert plain.digest() == some.digest()
    assert not plain.factors
    with pytest.raises(AssertionError, match="one entry an image"):
        ImageSet(some.images, None, (), factors={"x": torch.zeros(2)})


def test_factors_of_glyphs_are_characters_and_fonts() -> None:
    data = open_source("glyphs:digits,num=40", DataConfig(), "train")
    assert torch.equal(data.factors["character"], data.labels)
    assert torch.equal(data.factors["font"], data.extras["font"])
