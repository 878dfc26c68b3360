"""pixelkiln data: numbers against published and counted ones, leaks and bad files that were planted, the sheet, and mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from conftest import shared_data
from pixelkiln.cli.data import shares
from pixelkiln.cli.main import main
from pixelkiln.core.images import read_image
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import UserError
from pixelkiln.data import ImageSet, open_source
from pixelkiln.data.describe import Channel, Tally, describe, inspect
from pixelkiln.data.sheet import contact_sheet, spread


def described(*argv: str, tmp_path: Path) -> dict[str, Any]:
    """What the command writes as JSON."""
    assert main(["data", *argv, "--json", str(tmp_path / "facts.json")]) == 0
    return json.loads((tmp_path / "facts.json").read_text())


def channels(images: torch.Tensor) -> tuple[Channel, ...]:
    return describe(ImageSet(images, None, ()), {})[0].channels


def picture(path: Path, seed: int, size: tuple[int, int] = (24, 24)) -> None:
    """A smooth random picture, PNG or JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


def test_digits_against_scikit_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = described("digits", tmp_path=tmp_path)
    out = capsys.readouterr().out
    bunch = load_digits()
    keep = np.arange(len(bunch.images)) % 5 != 4
    pixels = np.round(bunch.images[keep] * 255 / 16)
    part = found["splits"]["train"]
    assert part["images"] == keep.sum() == 1438
    assert part["classes"] == {str(k): int((bunch.target[keep] == k).sum()) for k in range(10)}
    assert part["channels"] == [{"mean": pytest.approx(pixels.mean()), "deviation": pytest.approx(pixels.std()), "low": 0, "high": 255}]
    assert part["sizes"] == {"8 x 8": 1438}
    assert (part["captions"], part["extras"], part["bad"]) == (0, {}, [])
    assert re.search(r"images +1,438 +359", out)
    assert "test images that are in train: 0 exactly" in out


def test_mnist_against_its_published_mean_and_deviation(tmp_path: Path) -> None:
    """0.1307 and 0.3081, which every tutorial normalizes by."""
    data = open_source(str(shared_data("mnist")))
    tally = Tally(1)
    for part in data.parts(5000):
        tally.add(part)
    (channel,) = tally.channels()
    assert (round(channel.mean / 255, 4), round(channel.deviation / 255, 4)) == (0.1307, 0.3081)


def test_captions_and_maps_are_described(tmp_path: Path) -> None:
    data = open_source("glyphs:num=300")
    found = described("glyphs:num=300", tmp_path=tmp_path)["splits"]["train"]
    assert (found["captions"], found["extras"]) == (len(set(data.texts)), {"font": []})
    scenes = open_source("shapes", DataConfig(resolution=16), "test")
    part, _ = describe(scenes, {})
    assert (part.captions, part.extras) == (len(set(scenes.texts)), {"mask": (1, 16, 16), "edges": (1, 16, 16), "layout": (3, 5)})
    assert [c.mean for c in part.channels] == pytest.approx(scenes.images.double().mean(dim=(0, 2, 3)).tolist())
    assert [c.deviation for c in part.channels] == pytest.approx(scenes.images.double().std(dim=(0, 2, 3), correction=0).tolist())


def test_a_folder_with_leaks_mixed_sizes_and_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "zoo"
    for i in range(12):
        picture(folder / "train" / ("cat" if i % 3 else "dog") / f"{i:02d}.png", i, (24, 24) if i < 9 else (36, 24))
    for i in range(4):
        picture(folder / "test" / "cat" / f"{i}.png", 100 + i)
    picture(folder / "test" / "cat" / "near.jpg", 4)  # the twin of train image 4
    (folder / "test" / "cat" / "same.png").write_bytes((folder / "train" / "dog" / "03.png").read_bytes())
    (folder / "train" / "cat" / "again.png").write_bytes((folder / "train" / "cat" / "05.png").read_bytes())
    (folder / "train" / "dog" / "broken.png").write_bytes((folder / "train" / "dog" / "00.png").read_bytes()[:200])
    (folder / "train" / "dog" / "empty.jpg").write_bytes(b"")
    found = described(str(folder), "--out", str(tmp_path / "sheet.png"), tmp_path=tmp_path)
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["images"], test["images"]) == (13, 6)
    assert train["sizes"]["24 x 24"] >= 10
    assert train["sizes"]["36 x 24"] == 3
    assert (found["prepared"]["resolution"], found["prepared"]["fit"]) == (64, "letterbox")
    assert train["classes"] == {"cat": 9, "dog": 4}
    assert {Path(line.split(" ")[0]).name for line in train["bad"]} == {"broken.png", "empty.jpg"}
    twins = found["twins"]
    assert (twins["train"]["exact"], twins["train"]["near"]) == (1, 0)
    assert (twins["test"]["exact"], twins["test"]["near"]) == (0, 0)
    assert (twins["between"]["exact"], twins["between"]["near"], twins["between"]["conflicts"]) == (1, 1, 1)
    out = capsys.readouterr().out
    assert "test images that are in train: 1 exactly, 1 nearly" in out
    assert "broken.png cannot be decoded" in out
    assert out.strip().endswith("sheet.png")
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[0] == 3
    assert sheet.shape[1] > 2 * 64


def test_what_does_not_fit_in_memory_is_described_alike(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / "set" / ("cat" if i % 2 else "dog") / f"{i:02d}.png", i % 27)
    (kept, _), (streamed, shown) = (inspect(str(tmp_path / "set"), memory=memory) for memory in (10**9, 1))
    assert not isinstance(shown.images, torch.Tensor)
    assert kept == streamed
    assert kept.twins.train.exact + kept.twins.between.exact == 3
    assert contact_sheet(shown).shape[0] == 3


def test_a_source_too_small_for_a_test_split_is_taken_whole(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "few" / f"{i}.png", i)
    found = described(str(tmp_path / "few"), tmp_path=tmp_path)
    assert list(found["splits"]) == ["all"]
    assert found["splits"]["all"]["images"] == 4
    assert found["splits"]["all"]["classes"] == {}
    assert found["twins"]["between"] is None


def test_one_grey_split_is_colored_like_the_other(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "set" / "train" / f"{i}.png", i)
    (tmp_path / "set" / "test").mkdir()
    Image.new("L", (24, 24), 7).save(tmp_path / "set" / "test" / "a.png")
    found, _ = inspect(str(tmp_path / "set"))
    assert {part.shape for part in found.splits.values()} == {(3, 24, 24)}


def test_preparation_can_be_asked_for(tmp_path: Path) -> None:
    found = described("digits", "--data.resolution", "16", "--data.channels", "3", tmp_path=tmp_path)
    assert found["splits"]["train"]["shape"] == [3, 16, 16]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data", "nowhere"], r"nowhere does not exist"),
        (["data", "glyph"], r"did you mean 'glyphs'"),
        (["data", "digits", "--out", "sheet.jpg"], r"written as \.png"),
        (["data", "digits", "--data.fit", "squeeze"], r"--data\.fit: 'squeeze' is not one of crop, letterbox, pad"),
        (["data", "digits", "--data.background", "whit"], r"--data\.background: no color 'whit'.*white"),
        (["data", "digits", "--data.resolution", "0"], r"--data\.resolution 0: must be at least 1"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)


def test_no_image_that_can_be_decoded_is_one_line(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image can be decoded"):
        inspect(str(tmp_path))


def test_long_tails_are_abbreviated() -> None:
    assert shares({"a": 3, "b": 5}) == "b: 5, a: 3"
    many = {f"c{i}": 1000 - i for i in range(50)}
    assert shares(many, " classes").startswith("c0: 1,000, c1: 999, ")
    assert shares(many, " classes").endswith(", and 40 more classes of 951 to 990")
    assert shares({" ": 1, "\n": 2}) == "'\\n': 2, ' ': 1"


def test_the_sheet_has_a_row_for_each_class_with_images_of_it() -> None:
    images = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 1, 40, 40).contiguous()
    data = ImageSet(images, torch.arange(30) % 2, ("even", "odd Ω", "empty"))
    sheet = contact_sheet(data)
    assert sheet.shape[1] == 2 * 42 + 2
    cells = sheet[0, :, -(12 * 42) :]
    for row in range(2):
        shown = [int(cells[2 + 42 * row + 20, 42 * column + 20]) for column in range(12)]
        assert shown == sorted(set(shown))
        assert all(value % 2 == row for value in shown)
        assert (shown[0], shown[-1]) == (row, 28 + row)  # from the first to the last
    margin = sheet[0, :, : -(12 * 42)]
    assert (margin < 128).any(dim=1)[:42].any() and (margin < 128).any(dim=1)[42:].any()
    plain = contact_sheet(ImageSet(images.expand(-1, 3, -1, -1), None, ()))
    assert plain.shape[0] == 3


def test_spread_is_even_and_complete() -> None:
    rows = torch.arange(5, 25)
    assert torch.equal(spread(rows, 30), rows)
    assert spread(rows, 2).tolist() == [5, 24]
    assert len(set(spread(rows, 7).tolist())) == 7


def test_channels_are_exact_where_floats_would_cancel() -> None:
    images = torch.full((3, 1, 500, 500), 255, dtype=torch.uint8)
    images[0, 0, 0, 0] = 254
    (channel,) = channels(images)
    p = 1 / 750_000
    assert channel.deviation == pytest.approx((p * (1 - p)) ** 0.5, rel=1e-12)
    assert DataConfig() == inspect("digits")[0].prepared
