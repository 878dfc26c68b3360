"""What a listing knows before anything is decoded, and what is left out where the user says so."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pixelkiln.cli.main import main
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import UserError
from pixelkiln.data import open_source
from pixelkiln.data.sources import list_source

CONFIG = DataConfig()


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, num: int = 20, broken: tuple[int, ...] = ()) -> Path:
    """num images of two classes, image i filled with i; those in `broken` are cut short."""
    for i in range(num):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i)[: 42 if i in broken else None])
    return root


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    listing = list_source(folder(tmp_path / "set", broken=tuple(range(20))), "train")
    assert (len(listing), listing.classes, listing.name) == (18, ("a", "b"), "set")
    with pytest.raises(UserError, match="cannot be decoded"):
        listing.load(CONFIG)


def test_skip_bad_leaves_out_counts_and_names(tmp_path: Path) -> None:
    root = folder(tmp_path, broken=(3, 4, 8))
    (root / "a" / "00.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a/00\.png is not a PNG"):
        open_source(root)
    bad: list[str] = []
    data = open_source(root, bad=bad)
    kept = [*range(2, 18, 2), *range(1, 18, 2)]  # by class; each tenth of twenty is test: 18 and 19
    assert data.images[:, 0, 0, 0].tolist() == [i for i in kept if i not in (3, 4, 8)]
    assert data.labels.tolist() == [i % 2 for i in kept if i not in (3, 4, 8)]
    assert [line.split(" ")[0] for line in bad] == [str(root / name) for name in ("a/00.png", "a/04.png", "a/08.png", "b/03.png")]
    assert data.skipped == tuple(bad)
    assert all("\n" not in line for line in bad)
    whole: list[str] = []
    assert len(open_source(root, split="test", bad=whole)) == 2
    assert whole == []


def test_skip_bad_with_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image can be decoded"):
        open_source(folder(tmp_path, broken=tuple(range(20))), bad=[])


def test_skip_bad_does_not_hide_mixed_sizes(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "b" / "05.png").write_bytes(png(0, (5, 4)))
    with pytest.raises(UserError, match="pass --data.resolution"):
        open_source(tmp_path, bad=[])


def test_parquet_rows_are_read_one_row_group_at_a_time_and_bad_rows_skipped(tmp_path: Path) -> None:
    rows = [{"bytes": None if i == 7 else png(i)[: 42 if i == 5 else None], "path": ""} for i in range(20)]
    pq.write_table(pa.table({"image": rows, "label": list(range(20))}), tmp_path / "x.parquet", row_group_size=3)
    with pytest.raises(UserError, match=r"x\.parquet row [57]"):
        open_source(tmp_path / "x.parquet", split="all")
    bad: list[str] = []
    data = open_source(tmp_path / "x.parquet", split="all", bad=bad)
    assert data.images[:, 0, 0, 0].tolist() == data.labels.tolist() == [i for i in range(20) if i not in (5, 7)]
    assert ["row 5 " in bad[0], "row 7: column" in bad[1]] == [True, True]


def test_a_listing_is_known_by_names_sizes_labels_and_preparation(tmp_path: Path) -> None:
    first = list_source(folder(tmp_path / "one"), "train")
    assert first.digest(CONFIG) == list_source(folder(tmp_path / "two"), "train").digest(CONFIG)  # wherever it lies
    digests = [first.digest(CONFIG), first.digest(DataConfig(resolution=8)), list_source(tmp_path / "one", "test").digest(CONFIG)]
    (tmp_path / "one" / "a" / "00.png").write_bytes(png(0) + b"x")
    digests.append(list_source(tmp_path / "one", "train").digest(CONFIG))
    (tmp_path / "two" / "a" / "00.png").rename(tmp_path / "two" / "b" / "00.png")
    digests.append(list_source(tmp_path / "two", "train").digest(CONFIG))
    assert len(set(digests)) == 5


def test_parts_and_images_of() -> None:
    data = open_source("digits")
    parts = list(data.parts(100))
    assert [len(part) for part in parts] == [100] * 14 + [38]
    assert torch.equal(torch.cat(parts), data.images)
    assert torch.equal(data.images_of(torch.tensor([5, 2, 5])), data.images[[5, 2, 5]])


def test_the_flag_trains_on_the_rest_says_so_and_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = folder(tmp_path / "set", 60, broken=(2, 30)), tmp_path / "run"
    command = ["train", "pca", "--data", str(root), "--out", str(out), "--size", "tiny"]
    assert main(command) == 2
    assert "a/02.png cannot be decoded" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--skip-bad"]) == 0
    said = capsys.readouterr().err
    assert "2 of 54 images cannot be used and are left out" in said
    assert "a/30.png" in said
    facts = json.loads((out / "recipe.json").read_text())["data"]
    assert facts["images"] == 52
    assert [line.split("/")[-1][:6] for line in facts["skipped"]] == ["02.png", "30.png"]
