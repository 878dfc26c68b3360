"""Attribute arithmetic, reconstructions and codes from the command line, on linear and toy models of which all is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from commands import CHOSEN, TINY, linear_runs, pixelkiln
from pixelkiln.core.images import grid, read_image, read_texts
from pixelkiln.core.types import UserError
from pixelkiln.data import open_source
from pixelkiln.engine.arithmetic import direction, having, moved
from pixelkiln.engine.sample import load, slerp


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("runs")
    with linear_runs(base, 300, 60):
        assert pixelkiln("train", "pca", "--data", "digits", "--out", base / "digits", *TINY) == 0
        assert pixelkiln("train", "vqvae", "--data", "digits", "--out", base / "vqvae", "--steps", 2, *TINY) == 0
        yield base


def test_attributes_of_classes_and_factors(runs: Path) -> None:
    data = open_source("shapes", load(runs / "pca").opened.stage.data, "train")
    assert data.labels is not None
    assert torch.equal(having(data, "ring"), data.labels == 3)
    assert torch.equal(having(data, "3"), data.labels == 3)
    assert torch.equal(having(data, "shape=3"), data.labels == 3)
    assert torch.equal(having(data, "objects=2"), data.factors["objects"] == 2)
    high = having(data, "size=high")
    assert torch.equal(~high, having(data, "size=low"))
    assert 140 <= int(high.sum()) <= 150 and data.factors["size"][high].min() > data.factors["size"][~high].max()
    for what, says in (("rinng", "did you mean ring"), ("6", "knows no attribute"), ("size=3", "size=high or size=low"), ("shape=9", "categories 0 to 5"),
                       ("shape=x", "categories 0 to 5"), ("height=high", "knows no attribute"), ("objects=0", "no image of shapes train")):
        with pytest.raises(UserError, match=says):
            having(data, what)
    with pytest.raises(UserError, match="neither classes nor factors"):
        having(replace(data, labels=None, classes=(), factors={}), "ring")


def test_a_linear_model_moves_by_the_difference_of_mean_images(runs: Path) -> None:
    """PCA encodes and decodes linearly, so that d decodes to the two means' difference, seen through its axes; by numpy."""
    run = load(runs / "digits", precision="fp32")
    data = open_source("digits", run.opened.stage.data, "train")
    assert data.labels is not None
    found = direction(run, data, "3", "8", num=10_000)
    assert (found.has, found.lacks) == (int((data.labels == 3).sum()), int((data.labels == 8).sum()))
    x = data.images.flatten(1).double().numpy() / 127.5 - 1
    mean = x.mean(0)
    _, _, axes = np.linalg.svd(x - mean, full_matrices=False)
    axes = axes[:8]  # (8, D)
    difference = x[data.labels == 3].mean(0) - x[data.labels == 8].mean(0)
    model = run.method.model
    pulled = np.linalg.norm(model.weights.numpy() @ found.d.double().numpy())  # type: ignore[union-attr, operator]
    shrunk = 1 - float(model.noise) / model.variances.numpy()  # type: ignore[arg-type, union-attr, operator]
    assert pulled == pytest.approx(np.linalg.norm(shrunk * (axes @ difference)), rel=1e-4)
    images = moved(run, data.images[:2], found.d, scale=0.5, steps=3)
    assert images.shape == (2, 3, *data.info.shape)
    start = mean + ((x[:2] - mean) @ axes.T * shrunk) @ axes
    for i in range(2):
        for k, a in enumerate((0, 0.25, 0.5)):
            expected = (start[i] + a * (shrunk * (axes @ difference)) @ axes).clip(-1, 1)
            assert np.abs((expected + 1) * 127.5 - images[i, k].flatten().numpy()).max() < 0.6


def test_without_what_is_removed_it_is_all_others(runs: Path) -> None:
    run = load(runs / "pca", precision="fp32")
    data = open_source("shapes", run.opened.stage.data, "train")
    a, b = direction(run, data, "size=high", num=10_000), direction(run, data, "size=high", "size=low", num=10_000)
    torch.testing.assert_close(a.d, b.d)
    assert a.has + a.lacks == len(data)
    assert direction(run, data, "ring", num=7)[1:] == (7, 7)
    with pytest.raises(UserError, match="nothing to tell them apart"):
        direction(run, data, "ring", "shape=3")
    with pytest.raises(UserError, match="nothing to tell it from"):
        direction(run, data.take((data.labels == 3).nonzero()[:, 0]), "ring")  # type: ignore[union-attr]


def test_the_arithmetic_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("arithmetic", runs / "pca", "--add", "size=high", "--remove", "size=low")
    assert pixelkiln(*words, "--out", tmp_path / "a.png", "-n", 3, "--steps", 4, "--scale", "-1.5", *CHOSEN) == 0
    assert "size=high less size=low, codes of" in capsys.readouterr().out
    assert read_image(tmp_path / "a.png").shape == (3, 3 * 66 + 2, 5 * 66 + 2)
    assert read_texts(tmp_path / "a.png") == {"add": "size=high", "remove": "size=low", "scale": "-1.5"}
    run = load(runs / "pca", precision="fp32")
    test = open_source("shapes", run.opened.stage.data, "test")
    first = test.images[having(test, "size=low")][:3]
    d = direction(run, open_source("shapes", run.opened.stage.data, "train"), "size=high", "size=low").d
    expected = torch.cat([first[:, None], moved(run, first, d, -1.5, 4)], dim=1).flatten(0, 1)
    assert torch.equal(read_image(tmp_path / "a.png"), grid(expected, 5))
    Image.new("RGB", (20, 20), "red").save(tmp_path / "one.png")
    assert pixelkiln(*words, "--images", tmp_path / "one.png", tmp_path / "one.png", "--out", tmp_path / "a.gif", "--steps", 3, *CHOSEN) == 0
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4  # there and back
    assert pixelkiln("arithmetic", runs / "vae", "--add", "3", "--out", tmp_path / "v.png", *CHOSEN) == 0


def test_reconstructions(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row of images above the row of what becomes of them; ten images in rows of eight; the error by numpy."""
    assert pixelkiln("reconstruct", runs / "digits", "--out", tmp_path / "r.png", "-n", 10, *CHOSEN) == 0
    told = capsys.readouterr().out
    assert pixelkiln("reconstruct", runs / "digits", "--out", tmp_path / "r.npz", "-n", 10, *CHOSEN) == 0
    run = load(runs / "digits")
    test = open_source("digits", run.opened.stage.data, "test")
    rows = [int(i * (len(test) - 1) / 9) for i in range(10)]
    with np.load(tmp_path / "r.npz", allow_pickle=False) as f:
        made = torch.from_numpy(f["images"]).permute(0, 3, 1, 2)
    images = test.images[rows]
    errors = (images.double() - made.double()).numpy() ** 2
    decibel = (10 * np.log10(255**2 / errors.mean((1, 2, 3)))).mean()
    assert f"10 images, PSNR {decibel:.1f} dB" in told
    white = torch.full((6, *test.info.shape), 255, dtype=torch.uint8)
    assert torch.equal(read_image(tmp_path / "r.png"), grid(torch.cat([images[:8], made[:8], images[8:], white, made[8:], white]), 8))
    Image.new("L", (8, 8), 90).save(tmp_path / "one.png")
    assert pixelkiln("reconstruct", runs / "vqvae", "--images", tmp_path / "one.png", "--out", tmp_path / "one-r.png", *CHOSEN) == 0


def test_codes_as_arrays(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pixelkiln("embed", runs / "pca", "--split", "test", "--out", tmp_path / "c.npz", *CHOSEN) == 0
    assert "codes 60 x 8, float32" in capsys.readouterr().out
    run = load(runs / "pca", precision="fp32")
    test = open_source("shapes", run.opened.stage.data, "test")
    with np.load(tmp_path / "c.npz", allow_pickle=False) as f:
        assert set(f) == {"codes", "labels", "classes", *(f"factor.{name}" for name in test.factors)}
        np.testing.assert_allclose(f["codes"], run.method.encode(test.images.float() / 127.5 - 1), atol=1e-5)  # type: ignore[operator]
        assert f["classes"].tolist() == list(test.classes) and (f["labels"] == test.labels.numpy()).all()  # type: ignore[union-attr]
        np.testing.assert_array_equal(f["factor.size"], test.factors["size"])
    assert pixelkiln("embed", runs / "vqvae", "--out", tmp_path / "t.npz", *CHOSEN) == 0
    with np.load(tmp_path / "t.npz", allow_pickle=False) as f:
        assert f["codes"].dtype == np.int64 and f["codes"].ndim == 2 and len(f["codes"]) == len(f["labels"])
    Image.new("L", (8, 8), 90).save(tmp_path / "one.png")
    assert pixelkiln("embed", runs / "vae", "--images", tmp_path / "one.png", "--out", tmp_path / "o.npz", *CHOSEN) == 0
    with np.load(tmp_path / "o.npz", allow_pickle=False) as f:
        assert set(f) == {"codes"} and f["codes"].shape == (1, 4)


@pytest.mark.parametrize("path", ["lerp", "slerp"])
def test_walks_between_two_images(runs: Path, tmp_path: Path, path: str) -> None:
    """Of a run with a learned prior: its ends are the reconstructions, and its middle is the image of the code half-way."""
    run = load(runs / "vae", precision="fp32")
    test = open_source("digits", run.opened.stage.data, "test")
    for k in range(2):
        Image.fromarray(test.images[k, 0].numpy()).save(tmp_path / f"{k}.png")
    words = ("--images", tmp_path / "0.png", tmp_path / "1.png", "--path", path, "--frames", 3, "--out", tmp_path / "w.png")
    assert pixelkiln("interpolate", runs / "vae", *words, *CHOSEN) == 0
    with torch.no_grad():
        a, b = run.method.encode(test.images[:2].float() / 127.5 - 1).split(1)  # type: ignore[operator]
        codes = torch.cat([a, slerp(a, b, 0.5) if path == "slerp" else (a + b) / 2, b])
        expected = ((run.method.decode(codes).clamp(-1, 1) + 1) * 127.5).round()  # type: ignore[operator]
    frames = grid(expected.to(torch.uint8), 3)
    assert (read_image(tmp_path / "w.png").int() - frames.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("arithmetic", "ddpm", "--add", "3", "--out", "a.png"), "does not encode"),
        (("arithmetic", "vqvae", "--add", "3", "--out", "a.png"), "is no vector"),
        (("arithmetic", "vae", "--add", "three", "--out", "a.png"), "knows no attribute 'three'"),
        (("arithmetic", "vae", "--add", "3", "--out", "a.jpg"), "write .png"),
        (("arithmetic", "vae", "--out", "a.png"), "--add"),
        (("arithmetic", "vae", "--add", "3", "--scale", "0", "--out", "a.png"), "other than 0"),
        (("arithmetic", "vae", "--add", "3", "--images", "nowhere.png", "--out", "a.png"), "nowhere.png"),
        (("reconstruct", "ddpm", "--out", "a.png"), "encode"),
        (("reconstruct", "vae", "--out", "a.gif"), "write .png"),
        (("embed", "ddpm", "--out", "a.npz"), "does not encode"),
        (("embed", "vae", "--out", "a.csv"), "write .npz"),
        (("embed", "vae", "--data", "shapes", "--split", "all", "--out", "a.npz"), "ask for one of them"),
    ],
)
def test_mistakes_end_in_one_line(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...],
                                  says: str) -> None:
    monkeypatch.chdir(tmp_path)
    verb, run, *rest = words
    assert pixelkiln(verb, runs / run, *rest, *CHOSEN) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert not any(Path().glob("a.*"))
