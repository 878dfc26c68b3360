"""The report of toy methods: well-formed, self-contained, escaped, complete, and without side effects. Oracles: an HTML parser, scipy."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from pixelkiln.core.types import DataInfo, ImageShape, Request
from pixelkiln.engine import charts, neighbors, panels, report
from pixelkiln.engine.neighbors import nearest
from pixelkiln.engine.report import build_report
from report_toys import CLASSES, Demanding, Editor, Everything, Page, Plain, context, data

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
    for hostile in ("<em>", '"&"', "<script>", "<i>set", "<y>", "<a>", "<u>", "<features>"):
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
    with torch.autocast("cpu", torch.bfloat16):  # as in a report of a run in bf16
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
    assert copied.count("pixels 0 (×0.00)") == 8 and copied.count("features 0 (×0.00)") == 8
    assert re.search(r"pixels [\d.]+, 8 of 8; features [\d.]+, 8 of 8", copied)
    assert "×0.00" not in honest and "features" not in neighbors.neighbors_panel(context(extractor=None)).split("<p")[0]
    empty = replace(data("test", 40), images=torch.empty(0, 1, 8, 8, dtype=torch.uint8))
    assert "no test images" in neighbors.neighbors_panel(context(test=empty))


def test_metrics_show_floor_protocol_and_warnings():
    shown = Page(report.metrics_panel(context())).text
    assert "fd12.35 ± 0.121.5lower" in shown and "precision0.75–higherk 3" in shown
    assert "recall0.5 ± 0.02 [0.4512, 0.551]–higher" in shown, "the interval where the evaluation has one"
    assert "Protocol of all scores: extractor classifier <a>, N 2,000, seed 0." in shown
    assert report.metrics_panel(context(evaluation=None)) == ""


def test_curves_group_by_their_last_name_and_skip_what_is_no_number():
    shown = Page(report.curves_panel(context())).text
    assert shown.startswith("loss") and shown.index("lr") < shown.index("images_per_s") and "note" not in shown
    records = [{"step": 2, "a": 5.0}, {"step": 1, "a": 1.0}, {"step": 2, "a": float("nan"), "b": True, "c": None}, {"event": "resumed"}]
    assert "a" in report.curves_panel(context(records=records)) and "<svg" not in report.curves_panel(context(records=records))
    many = [{"step": s, **{f"{k}/kl": float(s * k) for k in range(6)}} for s in (1, 2, 3)]
    shown = report.curves_panel(context(records=many))
    assert shown.count("<rect") == 6 and "<polyline" not in shown and ">15<" in shown, "more names than colors: bars of the last values"
    few = report.curves_panel(context(records=[{k: v for k, v in row.items() if k != "5/kl"} for row in many]))
    assert few.count("<polyline") == 5 and "<rect" not in few
    resumed = [{"step": k, "a": float(k)} for k in (1, 2, 3, 2, 3, 4)]
    assert report._series(resumed)["a"] == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("module", [charts, neighbors, panels, report])
def test_exported_names_exist_and_are_sorted(module):
    assert module.__all__ == sorted(module.__all__) and all(hasattr(module, name) for name in module.__all__)
