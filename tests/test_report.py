"""The report of a toy method with every ability: well-formed, self-contained, escaped, complete, and without side effects."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from pixelkiln.core.images import grid
from pixelkiln.core.protocols import Codec, Denoiser, Latent, Method
from pixelkiln.core.rng import noise, streams
from pixelkiln.core.types import Ability, Condition, DataInfo, ImageShape, Request, UserError
from pixelkiln.engine import charts, neighbors, panels, report
from pixelkiln.engine.neighbors import nearest
from pixelkiln.engine.report import ReportContext, build_report

CLASSES = ("zero <em>", 'one "&"', "two")
VOID = {"img", "meta", "line", "polyline", "circle", "br"}
TITLES = {
    "samples": "Samples",
    "edits": "Edits",
    "scores": "Scores",
    "time": "The same seeds over time",
    "curves": "Curves",
    "strip": "From noise to image",
    "codec": "Reconstructions",
    "walk": "A walk in latent space",
    "near": "Nearest training images",
}


@dataclass(frozen=True)
class Set:
    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    split: str


class Plain(Method):
    """Gaussian images around a brightness by class; counts what is asked of it."""

    abilities = frozenset({Ability.LABEL})

    def __init__(self, info: DataInfo) -> None:
        super().__init__(info)
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        self.drawn = 0
        self.asked: list[Request] = []

    def draw(self, request: Request) -> Tensor:
        assert not self.net[1].training and not torch.is_grad_enabled()
        self.drawn += len(request.seeds)
        self.asked.append(request)
        z = 0.2 * noise(streams(request.seeds, "toy"), tuple(self.shape))
        torch.rand(1)  # a careless method that uses the global generator
        return z if request.cond.label is None else z + (request.cond.label.view(-1, 1, 1, 1) - 1.0) * 0.5


class Everything(Plain, Codec, Denoiser, Latent):
    """All protocols; ten solver steps, with estimates that fade in."""

    sigma_range = (0.01, 10.0)

    def draw(self, request: Request) -> Tensor:
        x = super().draw(request)
        if request.callback is not None:
            for i in range(10):
                request.callback(i, 10, x * i / 9)
        return x

    def encode(self, x: Tensor) -> Tensor:
        assert not self.net[1].training and not torch.is_grad_enabled()
        return x.mean((1, 2, 3))

    def decode(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 1, 1).expand(-1, *self.shape)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        return x

    def sigmas(self, steps: int, solver: str) -> Tensor:
        return torch.linspace(10, 0, steps + 1, dtype=torch.float64)

    def latents(self, seeds: Sequence[int]) -> Tensor:
        return noise(streams(seeds, "latent"), tuple(self.shape))

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        assert not torch.is_grad_enabled()
        self.drawn += len(z)
        return z


class Editor(Plain):
    """Brightens its source."""

    abilities = frozenset({Ability.SOURCE, Ability.STRENGTH})

    def draw(self, request: Request) -> Tensor:
        if request.cond.source is None:
            raise UserError("give a source")
        return super().draw(request) * 0 + request.cond.source + 0.5


class Demanding(Plain):
    """Needs a text that a report does not have."""

    def draw(self, request: Request) -> Tensor:
        raise UserError("give a <text> with --text")


class Corners:
    """Features that are two pixels."""

    def features(self, images: Tensor, /) -> Tensor:
        return images[:, 0, 0, :2].float()


def data(split: str, n: int) -> Set:
    gen = torch.Generator().manual_seed(n)
    return Set(torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=gen), torch.arange(n) % 3, CLASSES, "toy <i>set</i>", split)


def context(kind: type[Plain] = Everything, **changes: object) -> ReportContext:
    torch.manual_seed(0)
    records = [{"step": k, "d/loss": 1 / k, "g/loss": 2.0, "lr": 1e-3, "images_per_s": 100.0, "note": "text"} for k in range(1, 30)]
    protocol = {"extractor": "classifier <a>", "N": 2000, "seed": 0}
    evaluation = {
        "metrics": [
            {"name": "fd", "value": 12.3456789, "floor": 1.5, "protocol": protocol},
            {"name": "precision", "value": 0.75, "floor": None, "protocol": {**protocol, "k": 3}},
        ],
        "warnings": ["fewer samples than <features>"],
    }
    facts = {"recipe": "toy<script>", "paper": "A & B, arXiv 1234.5678", "command": "train 'x' <y>", "steps": "30"}
    base = ReportContext(
        method=kind(DataInfo(ImageShape(1, 8, 8), CLASSES)),
        train=data("train", 300),
        test=data("test", 40),
        facts=facts,
        records=records,
        history=[(k, grid(data("train", 4).images)) for k in range(0, 1200, 100)],
        evaluation=evaluation,
        extractor=Corners(),
        seed=5,
    )
    return replace(base, **changes)


class Page(HTMLParser):
    """Checks that every tag is closed in order, and collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, text: str) -> None:
        self.text += text
        if self.open and self.open[-1] == "h2":
            self.titles.append(text)

    def pictures(self) -> list[np.ndarray]:
        coded = [v.removeprefix("data:image/png;base64,") for k, v in self.attributes if k == "src"]
        return [np.array(Image.open(io.BytesIO(base64.b64decode(c, validate=True)))) for c in coded]


def test_the_page_is_well_formed_and_self_contained():
    text = build_report(context())
    page = Page(text)
    assert page.titles == [TITLES[k] for k in ("samples", "scores", "time", "curves", "strip", "codec", "walk", "near")]
    assert not {"script", "link", "iframe", "a", "object", "base"} & set(page.tags)
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert "href" not in dict(page.attributes) and not re.search(r"https?://|url\(|@import|\bon\w+=", text)
    assert all(picture.ndim == 2 for picture in page.pictures())
    assert "viewport" in text and "prefers-color-scheme" in text and "pixelated" in text


def test_text_from_outside_is_escaped():
    text = build_report(context())
    for hostile in ("<em>", '"&"', "<script>", "<i>set", "<y>", "<a>", "<features>"):
        assert hostile not in text
    shown = Page(text).text
    others = ("toy<script> on toy <i>set</i>", "train 'x' <y>", "classifier <a>", "fewer samples than <features>", "A & B, arXiv 1234.5678")
    for given in (*CLASSES, *others):
        assert given in shown


@pytest.mark.parametrize(
    ("kind", "titles"),
    [(Plain, ("samples", "near")), (Editor, ("edits", "near")), (Everything, ("samples", "strip", "codec", "walk", "near"))],
)
def test_panels_appear_only_for_what_the_method_can_do(kind, titles):
    bare = context(kind, records=[], history=[], evaluation=None, extractor=None)
    assert Page(build_report(bare)).titles == [TITLES[t] for t in titles]


def test_a_method_that_needs_more_is_said_so():
    page = Page(build_report(context(Demanding)))
    assert page.text.count("Not shown: give a <text> with --text") == 2 and TITLES["curves"] in page.titles


def test_training_is_not_disturbed():
    c = context()
    c.method.train()
    c.method.net[1].eval()  # a mode of its own
    modes, state = [m.training for m in c.method.modules()], torch.get_rng_state()
    first = build_report(c)
    assert [m.training for m in c.method.modules()] == modes and torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert build_report(replace(c)) == first


@pytest.mark.parametrize("num_classes", [0, 3, 10, 40])
def test_at_most_a_hundred_samples(num_classes):
    classes = tuple(f"c{k}" for k in range(num_classes))
    method = Everything(DataInfo(ImageShape(1, 8, 8), classes))
    text = build_report(context(method=method))
    assert 50 <= method.drawn <= 100
    assert ("The first 15 of 40 classes" in text) == (num_classes == 40)
    labels = [r.cond.label for r in method.asked]
    assert all((label is None) == (num_classes == 0) for label in labels)
    if num_classes == 3:
        assert torch.cat(labels[:1]).tolist() == [k for k in range(3) for _ in range(8)]


def test_each_class_has_its_row():
    rows = Page(panels.samples_panel(context())).pictures()[:3]
    means = [row[2:-2, 2:66].mean() for row in rows]  # classes of brightness -0.5, 0, 0.5
    assert means[0] < 90 < means[1] < 160 < means[2]
    assert all(row.shape == (68, 8 * 66 + 2) for row in rows)


def test_the_strip_ends_with_the_sample():
    c = context()
    (strip,) = Page(panels.strip_panel(c)).pictures()
    tiles = strip[2:, 2:].reshape(4, 66, 10, 66)[:, :64, :, :64]  # nine moments and the sample
    assert np.array_equal(tiles[:, :, 8], tiles[:, :, 9]) and np.unique(tiles[:, :, 0]).tolist() == [128]
    assert "1, 2, 3, 4, 5, 7, 8, 9, 10 of 10" in panels.strip_panel(c)
    assert panels.strip_panel(context(Plain)) == ""


def test_reconstructions_stand_below_their_images():
    c = context()
    with panels.undisturbed(c.method):
        (picture,) = Page(panels.reconstructions_panel(c)).pictures()
    tiles = picture[2:, 2:].reshape(2, 66, 8, 66)[:, :64, :, :64]
    assert np.ptp(tiles[1], axis=(0, 2)).max() == 0  # the toy codec keeps the mean only
    assert np.abs(tiles[0].mean((0, 2)) - tiles[1].mean((0, 2))).max() < 1


def test_edits_stand_below_their_sources():
    c = context(Editor)
    (picture,) = Page(panels.edits_panel(c)).pictures()
    tiles = picture[2:, 2:].reshape(2, 66, 8, 66)[:, :64, :, :64].astype(int)
    assert np.abs(tiles[1] - np.minimum(tiles[0] + 63.75, 255)).max() <= 1
    assert panels.samples_panel(c) == "" and panels.strip_panel(c) == ""


def test_history_keeps_the_first_and_the_last():
    steps = [int(s.replace(",", "")) for s in re.findall(r"step ([\d,]+)</figcaption>", panels.history_panel(context()))]
    assert (steps[0], steps[-1], len(steps)) == (0, 1100, 8) and steps == sorted(steps)


def test_nearest_against_scipy_and_exact_copies(monkeypatch):
    monkeypatch.setattr(neighbors, "BLOCK", 64)
    gen = torch.Generator().manual_seed(3)
    pool = torch.randint(0, 256, (500, 300), dtype=torch.uint8, generator=gen)
    queries = torch.cat([torch.randint(0, 256, (20, 300), dtype=torch.uint8, generator=gen), pool[[7, 499]]])
    distance, rows = nearest(queries, pool)
    expected = cdist(queries.numpy().astype(float), pool.numpy().astype(float))
    assert rows.tolist() == expected.argmin(1).tolist()
    assert np.allclose(distance.numpy(), expected.min(1), rtol=1e-6) and distance[-2:].tolist() == [0, 0]


def test_a_method_that_copies_is_found_out():
    class Copier(Plain):
        def draw(self, request: Request) -> Tensor:
            x = data("train", 300).images[: len(request.seeds)].float() / 127.5 - 1
            self.drawn += len(x)
            return x

    copied, honest = neighbors.neighbors_panel(context(Copier)), neighbors.neighbors_panel(context())
    assert copied.count("pixels 0 · ×0.00") == 8 and copied.count("features 0 · ×0.00") == 8
    assert re.search(r"pixels [\d.]+, 8 of 8; features [\d.]+, 8 of 8", copied)
    assert "×0.00" not in honest and "features" not in neighbors.neighbors_panel(context(extractor=None)).split("<p")[0]
    empty = replace(data("test", 40), images=torch.empty(0, 1, 8, 8, dtype=torch.uint8))
    assert "no test images" in neighbors.neighbors_panel(context(test=empty))


def test_metrics_show_floor_protocol_and_warnings():
    shown = Page(report.metrics_panel(context())).text
    assert "fd12.351.5lower" in shown and "precision0.75–higherk 3" in shown
    assert "Protocol of all scores: extractor classifier <a>, N 2,000, seed 0." in shown
    assert report.metrics_panel(context(evaluation=None)) == ""


def test_curves_group_by_their_last_name_and_skip_what_is_no_number():
    shown = Page(report.curves_panel(context())).text
    assert shown.startswith("loss") and shown.index("lr") < shown.index("images_per_s") and "note" not in shown
    records = [{"step": 2, "a": 5.0}, {"step": 1, "a": 1.0}, {"step": 2, "a": float("nan"), "b": True, "c": None}, {"event": "resumed"}]
    assert "a" in report.curves_panel(context(records=records)) and "<svg" not in report.curves_panel(context(records=records))
    resumed = [{"step": k, "a": float(k)} for k in (1, 2, 3, 2, 3, 4)]
    assert report._series(resumed)["a"] == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("module", [charts, neighbors, panels, report])
def test_exported_names_exist_and_are_sorted(module):
    assert module.__all__ == sorted(module.__all__) and all(hasattr(module, name) for name in module.__all__)
