"""The embedded sets: digits against scikit-learn, scenes of shapes against geometry that shares no code with them."""

from __future__ import annotations

import re
from functools import cache
from math import cos, pi, radians, sin, sqrt

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon
from scipy.ndimage import binary_erosion
from sklearn.datasets import load_digits

from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import UserError
from pixelkiln.data import ImageSet, open_source
from pixelkiln.data.shapes import COLORS, KINDS, Scenes, draw, scenes


@cache
def shapes(resolution: int = 32) -> ImageSet:
    return open_source("shapes", DataConfig(resolution=resolution), "test")


def test_digits_are_scikit_learns_scaled_and_split_by_five() -> None:
    train, test, whole = (open_source("digits", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (1438, 359, 1797)
    levels = load_digits().images
    assert np.abs(whole.images[:, 0].numpy() / 255 * 16 - levels).max() <= 16 / 255 / 2 + 1e-9  # rounding, no more
    assert whole.images.max() == 255
    assert torch.equal(test.images, whole.images[4::5])
    assert torch.equal(test.labels, torch.from_numpy(load_digits().target[4::5]))
    assert test.classes == tuple("0123456789")
    assert torch.bincount(train.labels).min() > 120
    assert train.digest() != test.digest()


def test_digits_at_another_size() -> None:
    data = open_source("digits", DataConfig(resolution=16, channels=3))
    assert data.images.shape == (1438, 3, 16, 16)
    assert data.info.shape.numel == 768


def corners(kind: str) -> list[tuple[float, float]]:
    """Polygon of area 1 about its center of mass, y down."""
    if kind == "square":
        return [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
    if kind == "diamond":
        return [(0, -sqrt(0.5)), (sqrt(0.5), 0), (0, sqrt(0.5)), (-sqrt(0.5), 0)]
    if kind == "triangle":
        far = sqrt(4 / sqrt(3)) / sqrt(3)  # side / sqrt(3)
        return [(far * cos(radians(a)), far * sin(radians(a))) for a in (-90, 30, 150)]
    a = 1 / sqrt(5)  # five squares make the cross
    x, y = (
        [-1.5, -0.5, -0.5, 0.5, 0.5, 1.5, 1.5, 0.5, 0.5, -0.5, -0.5, -1.5],
        [-0.5, -0.5, -1.5, -1.5, -0.5, -0.5, 0.5, 0.5, 1.5, 1.5, 0.5, 0.5],
    )
    return [(a * p, a * q) for p, q in zip(x, y, strict=True)]


def inside(kind: str, points: np.ndarray) -> np.ndarray:
    radius = np.hypot(points[:, 0], points[:, 1])
    if kind == "circle":
        return radius**2 * pi < 1
    if kind == "ring":
        outer = sqrt(1 / (pi * 0.75))
        return (radius < outer) & (radius > outer / 2)
    return Polygon(corners(kind)).contains_points(points)


def grid(side: int) -> np.ndarray:
    ticks = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(ticks, ticks)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def rasterized(scene: Scenes, row: int, side: int) -> np.ndarray:
    """Ids of the objects at the points of a grid, by geometry alone."""
    ids = np.zeros(side * side, dtype=int)
    for slot, code in enumerate(scene.kind[row].tolist()):
        if code >= 0:
            points = (grid(side) - scene.center[row, slot].double().numpy()) / float(scene.size[row, slot])
            ids[inside(list(KINDS)[code], points)] = slot + 1
    return ids.reshape(side, side)


@pytest.mark.parametrize("side", [16, 32])
def test_masks_and_antialiased_images_equal_brute_force(side: int) -> None:
    scene = scenes("test", range(60))
    assert set(scene.kind.flatten().tolist()) == {-1, 0, 1, 2, 3, 4, 5}
    images, masks = draw(scene, side)
    palette = np.array(list(COLORS.values()), dtype=float)
    for row in range(60):
        assert (rasterized(scene, row, side) != masks[row, 0].numpy()).sum() == 0
        fine = rasterized(scene, row, side * 8)  # 8 x 8 points in every pixel
        colors = palette[[int(scene.background[row]), *scene.color[row].tolist()]]
        expected = colors[fine].reshape(side, 8, side, 8, 3).mean(axis=(1, 3))
        assert np.abs(images[row].permute(1, 2, 0).numpy() - expected).max() <= 8  # a point or two on a boundary, in float32


def test_a_scene_is_a_function_of_split_and_number() -> None:
    alone, among, other = scenes("test", range(7, 8)), scenes("test", range(10)), scenes("train", range(10))
    assert all(torch.equal(a[0], b[7]) for a, b in zip(alone, among, strict=True))
    assert not torch.equal(other.center, among.center)
    assert shapes(16).texts == shapes(32).texts  # whatever the resolution


def test_boxes_are_the_extents_of_the_mask() -> None:
    data = shapes()
    for mask, rows in zip(data.extras["mask"][:400, 0].numpy(), data.extras["layout"][:400].numpy(), strict=True):
        for k, (kind, *box) in enumerate(rows, 1):
            y, x = np.nonzero(mask == k)
            if kind < 0:
                assert len(x) == 0
                assert box == [0, 0, 0, 0]
            else:
                assert np.array_equal(np.array(box) * 32, [x.min(), y.min(), x.max() + 1, y.max() + 1])


def test_labels_are_the_kinds_of_the_largest_shapes() -> None:
    data = shapes()
    area = torch.stack([(data.extras["mask"] == k).sum(dim=(1, 2, 3)) for k in (1, 2, 3)], dim=1)
    kinds = data.extras["layout"][:, :, 0]
    assert torch.equal(kinds.gather(1, area.argmax(dim=1, keepdim=True))[:, 0].long(), data.labels)
    assert data.classes == tuple(sorted(KINDS))
    assert torch.bincount(data.labels).min() > 250
    assert ((area > 0) == (kinds >= 0)).all()
    assert torch.bincount((area > 0).sum(dim=1)).tolist()[3] > 300


def test_edges_are_the_inner_boundary_of_the_mask() -> None:
    data = shapes()
    for mask, edges in zip(data.extras["mask"][:200, 0].numpy(), data.extras["edges"][:200, 0].numpy(), strict=True):
        expected = sum((mask == k) & ~binary_erosion(mask == k, border_value=1) for k in (1, 2, 3))
        assert np.array_equal(edges, expected)


def holds(relation: str, a: list[float], b: list[float]) -> bool:
    ax0, ay0, ax1, ay1 = a
    bx0, by0, bx1, by1 = b
    return {"to the left of": ax1 <= bx0, "to the right of": ax0 >= bx1, "above": ay1 <= by0, "below": ay0 >= by1}[relation]


@pytest.mark.parametrize("resolution", [16, 32])
def test_captions_say_what_is_in_the_pixels(resolution: int) -> None:
    data = shapes(resolution)
    thing = r"(an?) (\w+) (\w+)"
    ends = r"(to the left of|to the right of|above|below)"
    for i, text in enumerate(data.texts):
        body, _, ground = text.partition(" on a")
        ground = ground.removeprefix("n").removesuffix(" background").strip() or "white"
        assert data.images[i, :, 0, 0].tolist() == list(COLORS[ground])
        named = re.findall(thing, body)
        relations = re.findall(ends, body)
        boxes = [row for row in data.extras["layout"][i].tolist() if row[0] >= 0]
        assert len(named) == len(boxes)
        assert len(relations) == len(boxes) - 1
        for k, ((article, color, kind), (code, *_)) in enumerate(zip(named, boxes, strict=True), 1):
            assert (article == "an") == (color[0] in "aeiou")
            assert data.classes[int(code)] == kind
            inner = torch.from_numpy(binary_erosion(data.extras["mask"][i, 0].numpy() == k, np.ones((3, 3))))
            if inner.any():
                assert (data.images[i][:, inner] == torch.tensor(COLORS[color])[:, None]).all()
        for relation, box in zip(relations, boxes[1:], strict=True):
            assert holds(relation, boxes[0][1:], box[1:]), text
        assert len({color for _, color, _ in named} | {ground}) == len(named) + 1  # all colors differ


def test_shapes_follow_the_config_and_refuse_what_cannot_be_seen() -> None:
    data = open_source("shapes", DataConfig(resolution=18, multiple=8, channels=1), "test")
    assert data.images.shape == (2000, 1, 24, 24)
    assert data.extras["mask"].shape == (2000, 1, 24, 24)
    with pytest.raises(UserError, match="16 or more"):
        open_source("shapes", DataConfig(resolution=8))
    with pytest.raises(UserError, match="ask for one of them"):
        open_source("shapes", split="all")
