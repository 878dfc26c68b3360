"""Pictures of the user's, prepared for a run. Oracles: the training images of the same files, and Pillow step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelkiln.cli.main import main
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import ImageShape, UserError
from pixelkiln.data import open_source, pictures
from pixelkiln.engine.sample import load

SIZES = ((50, 30), (24, 61), (40, 40), (7, 90))


def scene(number: int, size: tuple[int, int], mode: str = "RGBA") -> Image.Image:
    """Smooth colors that are partly transparent."""
    gen = np.random.default_rng(number)
    small = Image.fromarray(gen.integers(0, 256, (6, 6, 4), dtype=np.uint8), "RGBA")
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of four sizes in two subfolders."""
    for k, size in enumerate(SIZES):
        (tmp_path / "in" / f"{k % 2}").mkdir(parents=True, exist_ok=True)
        scene(k, size).save(tmp_path / "in" / f"{k % 2}" / f"{k}.png")
    return tmp_path / "in"


def levels(a: torch.Tensor, b: torch.Tensor) -> int:
    assert a.shape == b.shape
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("fit", ["crop", "letterbox", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_prepared_as_the_training_images_of_the_same_files_were(folder: Path, fit: str, channels: int) -> None:
    config = DataConfig(resolution=16, fit=fit, background="#2060c0", channels=channels)  # type: ignore[arg-type]
    trained = open_source(str(folder), config, "all").images_of(torch.arange(len(SIZES)))
    found = pictures(folder, ImageShape(channels, 16, 16), config)
    assert torch.equal(found, trained)
    one = pictures(folder / "1" / "3.png", ImageShape(channels, 16, 16), config)
    assert torch.equal(one[0], found[3])
    other = pictures(folder, ImageShape(channels, 16, 16), DataConfig(resolution=16, fit=fit, channels=channels))  # type: ignore[arg-type]
    assert levels(found, other) > 20, "the background shows"


@pytest.mark.parametrize("size", [(24, 16), (9, 32)])
def test_shapes_that_are_not_square_against_pillow(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    for k, of in enumerate(SIZES[:3]):
        image = scene(k, of, "RGB")
        image.save(tmp_path / "a.png")
        crop, letterbox, pad = (pictures(tmp_path / "a.png", ImageShape(3, height, width), DataConfig(fit=fit))[0].permute(1, 2, 0).numpy().astype(int)
                                for fit in ("crop", "letterbox", "pad"))
        scale = min(width / of[0], height / of[1])
        inner = round(of[0] * scale), round(of[1] * scale)
        ground = Image.new("RGB", size, "white")
        top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
        ground.paste(image.resize(inner, Image.Resampling.BICUBIC), (left, top))
        assert abs(letterbox - np.asarray(ground).astype(int)).max() <= 4  # a large reduction is done in two steps
        edges = np.pad(letterbox[top : top + inner[1], left : left + inner[0]],
                       ((top, height - top - inner[1]), (left, width - left - inner[0]), (0, 0)), mode="edge")
        assert np.array_equal(pad, edges)
        wide, high = min(of[0], round(of[1] * width / height)), min(of[1], round(of[0] * height / width))  # the largest window of that ratio
        left, top = (of[0] - wide) // 2, (of[1] - high) // 2
        theirs = image.crop((left, top, left + wide, top + high)).resize(size, Image.Resampling.BICUBIC)
        assert abs(crop - np.asarray(theirs).astype(int)).max() <= 4


def test_an_image_of_the_very_size_stays_as_it_is(tmp_path: Path) -> None:
    scene(5, (24, 16), "RGB").save(tmp_path / "a.png")
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1)
    for fit in ("crop", "letterbox", "pad"):
        assert torch.equal(pictures(tmp_path / "a.png", ImageShape(3, 16, 24), DataConfig(fit=fit))[0], expected)  # type: ignore[arg-type]


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "bad.png").write_bytes(b"words")
    shape = ImageShape(3, 8, 8)
    for name, says in (("absent.png", "no such image"), ("bad.png", "not a PNG"), ("notes.txt", "not a PNG")):
        with pytest.raises(UserError, match=says):
            pictures(tmp_path / name, shape, DataConfig())
    (tmp_path / "bad.png").unlink()
    with pytest.raises(UserError, match="no such image"):
        pictures(tmp_path, shape, DataConfig())


def run(*args: object) -> None:
    assert main([str(a) for a in args]) == 0


def images_of(file: Path) -> torch.Tensor:
    with np.load(file, allow_pickle=False) as f:
        return torch.from_numpy(f["images"]).permute(0, 3, 1, 2)


def test_edits_begin_from_the_letterboxed_picture_of_a_folder_in_turn(folder: Path, tmp_path: Path) -> None:
    """With almost no strength, an edit is its source."""
    tiny = ("--size", "tiny", "--steps", 2, "--quiet", "--precision", "fp32")
    settings = ("--data.resolution", 16, "--data.fit", "letterbox", "--data.background", "#2060c0", "--data.channels", 3)
    (tmp_path / "many").mkdir()
    for k in range(12):
        scene(k, SIZES[k % 4]).save(tmp_path / "many" / f"{k}.png")
    run("train", "ddpm", "--data", tmp_path / "many", "--out", tmp_path / "base", *settings, *tiny)
    run("train", "sdedit", "--parent", f"base={tmp_path / 'base'}", "--out", tmp_path / "edit", *tiny)
    args = ("--strength", 0.02, "--steps", 1, "--solver", "ddim", "-n", 6, "--precision", "fp32", "--quiet")
    run("sample", tmp_path / "edit", "--source", folder, "--out", tmp_path / "e.npz", *args)
    sources = load(tmp_path / "edit", precision="fp32").pictures(folder)
    config = DataConfig(resolution=16, fit="letterbox", background="#2060c0", channels=3)
    assert torch.equal(sources, open_source(str(folder), config, "all").images_of(torch.arange(4)))
    edits = images_of(tmp_path / "e.npz")
    distance = (edits[:, None].float() - sources.float()).abs().flatten(2).mean(2)  # (edits, sources)
    assert distance.argmin(1).tolist() == [0, 1, 2, 3, 0, 1]
    assert distance.min(1).values.max() < 12


def test_a_run_that_is_not_square_takes_a_picture_of_another_shape(tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(scene(k, (24, 16), "L")) for k in range(12)])
    np.savez(tmp_path / "d.npz", images=pixels)
    scene(3, (40, 40), "RGB").save(tmp_path / "a.png")
    run("train", "pca", "--data", tmp_path / "d.npz", "--out", tmp_path / "r", "--model.components", 4, "--quiet")
    run("interpolate", tmp_path / "r", "--images", tmp_path / "a.png", tmp_path / "a.png", "--frames", 2, "--out", tmp_path / "w.png", "--quiet")
    assert load(tmp_path / "r").pictures(tmp_path / "a.png").shape == (1, 1, 16, 24)
