"""Traversals and scores of codes from the command line, on a linear model of which all is known in closed form."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from commands import CHOSEN, linear_runs, pixelkiln
from pixelkiln.core.images import read_image, read_texts
from pixelkiln.core.protocols import Codec
from pixelkiln.core.types import UserError
from pixelkiln.data import open_source
from pixelkiln.engine.codes import codes_of
from pixelkiln.engine.sample import load, seeds_for
from pixelkiln.engine.traverse import busiest, traverse, traversed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("runs")
    with linear_runs(base, 1_000, 1_500):
        yield base


def test_one_unit_moves_and_the_others_stay() -> None:
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    rows = traversed(z, [4, 0], 2, 5)
    assert rows.shape == (2, 5, 2, 3)
    for r, unit in enumerate((4, 0)):
        for s, value in enumerate((-2, -1, 0, 1, 2)):
            expected = z.clone()
            expected[divmod(unit, 3)] = value
            assert torch.equal(rows[r, s], expected)


def test_a_linear_model_moves_along_its_axes(runs: Path) -> None:
    run = load(runs / "pca", precision="fp32")
    images, units = traverse(run, seed=3, units=[2, 7], span=1.5, steps=3)
    assert units == [2, 7]
    model = run.method.model
    z = run.method.latents(seeds_for(3, 1))[0].double()  # type: ignore[attr-defined, operator]
    for row, unit in zip(images, units, strict=True):
        for image, value in zip(row, (-1.5, 0.0, 1.5), strict=True):
            moved = z.clone()
            moved[unit] = value
            x = (model.weights @ moved + model.mean).clamp(-1, 1).view(3, 16, 16)  # type: ignore[union-attr, operator]
            assert ((x + 1) * 127.5 - image.double()).abs().max() <= 0.501


def test_around_an_image_and_its_busiest_units(runs: Path) -> None:
    run = load(runs / "pca", precision="fp32")
    train = open_source("shapes", run.opened.stage.data, "train")
    images, units = traverse(run, image=train.images[0], span=1, steps=3)
    rows = np.linspace(0, len(train) - 1, 500).astype(int)
    codes = np.stack([run.method.encode(train.images[int(i)][None].float() / 127.5 - 1)[0].numpy() for i in rows])  # type: ignore[attr-defined, operator]
    assert units == np.argsort(-codes.var(0)).tolist() == busiest(run)
    assert images.shape == (8, 3, 3, 16, 16)
    code = run.method.encode(train.images[:1].float() / 127.5 - 1)[0]  # type: ignore[attr-defined, operator]
    code[units[0]] = 0
    middle = run.method.decode(code[None])[0].clamp(-1, 1)  # type: ignore[attr-defined, operator]
    assert ((middle + 1) * 127.5 - images[0, 1].float()).abs().max() <= 0.51


def num_frames(file: Path) -> int:
    with Image.open(file) as animation:
        return int(animation.n_frames)


def test_the_command_writes_a_grid_or_an_animation(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pixelkiln("traverse", runs / "pca", "--units", "3,0", "--steps", 5, "--span", "1.5", "--out", tmp_path / "t.png", *CHOSEN) == 0
    assert "units 3,0, from -1.5 to 1.5" in capsys.readouterr().out
    assert read_texts(tmp_path / "t.png") == {"units": "3,0", "span": "1.5"}
    picture = read_image(tmp_path / "t.png")
    assert picture.shape == (3, 2 * (64 + 2) + 2, 5 * (64 + 2) + 2)
    assert pixelkiln("traverse", runs / "ddpm", "--label", "2", "--steps", 2, "--out", tmp_path / "t.gif", *CHOSEN) == 0  # no codec: the first ten
    assert "units 0,1,2,3,4,5,6,7,8,9" in capsys.readouterr().out
    assert num_frames(tmp_path / "t.gif") == 2
    assert pixelkiln("traverse", runs / "pca", "--image", tmp_path / "t.png", "--out", tmp_path / "i.gif", "--steps", 4, *CHOSEN) == 0
    assert num_frames(tmp_path / "i.gif") == 6  # there and back


@pytest.mark.parametrize(
    ("run", "words", "says"),
    [
        ("pca", ("--out", "t.jpg"), "write .png"),
        ("pca", ("--out", "t.png", "--units", "1,8"), "units 0 to 7"),
        ("pca", ("--out", "t.png", "--units", "-1"), "list of units"),
        ("pca", ("--out", "t.png", "--units", "a"), "list of units"),
        ("pca", ("--out", "t.png", "--span", "0"), "above 0"),
        ("pca", ("--out", "t.png", "--span", "nan"), "above 0"),
        ("pca", ("--out", "t.png", "--steps", "1"), "each end"),
        ("pca", ("--out", "t.png", "--label", "1"), "not conditioned on labels"),
        ("pca", ("--out", "t.png", "--image", "a.png", "--seed", "1"), "not allowed with"),
        ("pca", ("--out", "t.png", "--image", "nowhere.png"), "nowhere.png"),
        ("ddpm", ("--out", "t.png", "--image", "one.png"), "cannot encode"),
    ],
)
def test_mistakes_end_in_one_line(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: str,
                                  words: tuple[str, ...], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("one.png")
    assert pixelkiln("traverse", runs / run, *words, *CHOSEN) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert not Path("t.png").exists()


def test_scores_of_codes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Principal components say more of the scenes than codes of other scenes do; nothing is sampled and no extractor is trained."""
    assert pixelkiln("evaluate", runs / "pca", "--metrics", "sap,mig,dci", "-n", 1500, "--json", tmp_path / "e.json", *CHOSEN) == 0
    found = {m["name"]: m for m in json.loads((tmp_path / "e.json").read_text())["metrics"]}
    assert set(found) == {"mig", "dci-disentanglement", "dci-completeness", "dci-informativeness", "sap"}
    assert all(0 <= m["floor"] < m["value"] <= 1 and m["better"] == "higher" for m in found.values())
    assert found["dci-informativeness"]["value"] > 0.1 > 0.02 > found["dci-informativeness"]["floor"]
    assert found["mig"]["floor"] < 0.02
    protocol = found["mig"]["protocol"]
    assert (protocol["N"], protocol["units"], protocol["bins"]) == (1500, 8, 20)
    assert "shape" in protocol["by factor"]
    assert "dci-completeness" in capsys.readouterr().out
    assert not (Path(os.environ["PIXELKILN_CACHE"]) / "extractors").exists()
    assert not (runs / "pca" / "evaluation.json").exists(), "the report shows the usual scores"


def test_scores_of_codes_need_factors_and_vectors(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, more, says in (("vae", (), "digits has none"), ("ddpm", ("--data", "shapes"), "does not encode"), ("pca", ("-n", 30), "images for each of the")):
        assert pixelkiln("evaluate", runs / run, "--metrics", "mig", *more, *CHOSEN) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert says in line

    class Grid(Codec):
        def encode(self, x: Tensor) -> Tensor:
            return x[:, :, ::4, ::4]

        def decode(self, z: Tensor) -> Tensor:
            return z

    trained = SimpleNamespace(method=Grid(), where=SimpleNamespace(device="cpu"), facts={"recipe": "grid"})
    with pytest.raises(UserError, match=r"a code of grid is no vector \(1x4x4 float32\)"):
        codes_of(trained, torch.zeros(2, 1, 16, 16, dtype=torch.uint8))  # type: ignore[arg-type]
