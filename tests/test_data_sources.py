"""IDX, Parquet and npz sources against files made on the spot, and the real sets."""

from __future__ import annotations

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import shared_data
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import UserError
from pixelkiln.data import listing, open_source, write_npz

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 5, 4), dtype=np.uint8)


def idx(array: np.ndarray, code: int = 8) -> bytes:
    """An IDX file as its specification has it."""
    head = bytes([0, 0, code, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + bytes(array.flatten().tolist())


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray | None, joint: str = "-", zipped: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    for what, array, kind in (("images", images, "idx3"), ("labels", labels, "idx1")):
        if array is not None:
            name = f"{part}-{what}{joint}{kind}-ubyte{'.gz' if zipped else ''}"
            (folder / name).write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_is_read_as_written(tmp_path: Path, joint: str, zipped: bool) -> None:
    labels = np.arange(20, dtype=np.uint8) % 4
    write_idx(tmp_path, "train", GREY[:15], labels[:15], joint, zipped)
    write_idx(tmp_path, "t10k", GREY[15:], labels[15:], joint, zipped)
    train, test = open_source(tmp_path), open_source(str(tmp_path), split="test")
    assert np.array_equal(train.images[:, 0].numpy(), GREY[:15])
    assert np.array_equal(test.images[:, 0].numpy(), GREY[15:])
    assert train.labels.tolist() == labels[:15].tolist()
    assert test.labels.tolist() == labels[15:].tolist()
    assert train.classes == test.classes == ("0", "1", "2", "3")
    assert tuple(train.info.shape) == (1, 5, 4)


def test_idx_without_a_test_part_holds_out_each_tenth(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", GREY, np.arange(20, dtype=np.uint8))
    assert open_source(tmp_path, split="test").labels.tolist() == [9, 19]
    assert open_source(tmp_path).labels.tolist() == [*range(9), *range(10, 19)]
    assert len(open_source(tmp_path, split="all")) == 20


IMAGES, LABELS = idx(GREY), idx(np.zeros(20, np.uint8))
BROKEN_IDX = {
    "magic": ({"train-images-idx3-ubyte": b"\x1f\x8b" + IMAGES[2:]}, "does not begin as an IDX file"),
    "empty": ({"train-images-idx3-ubyte": b""}, "does not begin as an IDX file"),
    "dtype": ({"train-images-idx3-ubyte": idx(GREY, 13)}, "dtype code 0x0d"),
    "dimensions": ({"train-images-idx3-ubyte": LABELS}, "1 dimensions"),
    "header": ({"train-images-idx3-ubyte": IMAGES[:10]}, "cut short in its header"),
    "short": ({"train-images-idx3-ubyte": IMAGES[:-1]}, "promises 20 x 5 x 4 bytes but holds 399"),
    "long": ({"train-images-idx3-ubyte": IMAGES + b"x"}, "holds more"),
    "bomb": ({"train-images-idx3-ubyte.gz": gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**32 - 1] * 3))}, "promises"),
    "gzip": ({"train-images-idx3-ubyte.gz": gzip.compress(IMAGES)[:-200]}, "cannot be read"),
    "gzip crc": ({"train-images-idx3-ubyte.gz": gzip.compress(IMAGES)[:-8] + bytes(8)}, "cannot be read"),
    "no gzip": ({"train-images-idx3-ubyte.gz": IMAGES}, "cannot be read"),
    "counts": (
        {"train-images-idx3-ubyte": IMAGES, "train-labels-idx1-ubyte": idx(np.zeros(19, np.uint8))},
        "20 images but its labels are 19",
    ),
    "one labeled": (
        {"train-images-idx3-ubyte": IMAGES, "train-labels-idx1-ubyte": LABELS, "t10k-images-idx3-ubyte": IMAGES},
        "labels for train only",
    ),
}


@pytest.mark.parametrize("case", BROKEN_IDX)
def test_broken_idx_is_one_clear_line(case: str, tmp_path: Path) -> None:
    files, message = BROKEN_IDX[case]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        open_source(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, labels: list[object] | None, names: list[str] | None = None, column: str = "image", **more: object) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    num = len(labels) if labels is not None else 20
    columns: dict[str, object] = {column: [{"bytes": png(GREY[i % 20]), "path": f"{i}.png"} for i in range(num)], **more}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if names is not None:
        features = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


@pytest.mark.parametrize("below", ["", "data"])
def test_parquet_in_the_hub_layout(below: str, tmp_path: Path) -> None:
    names = ["cat", "dog", "fox"]
    texts = pa.array([f"picture {i}" for i in range(4)])
    write_parquet(tmp_path / below / "train-00000-of-00002.parquet", [2, 0, 2, 0], names, text=texts)
    write_parquet(tmp_path / below / "train-00001-of-00002.parquet", [1, 1, 1, 1], names, text=texts)
    write_parquet(tmp_path / below / "test-00000-of-00001.parquet", [0, 0, 0, 2], names, text=texts)
    train, test = open_source(tmp_path), open_source(tmp_path, split="test")
    assert train.labels.tolist() == [2, 0, 2, 0, 1, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 0, 2]
    assert train.classes == test.classes == ("cat", "dog", "fox")
    assert train.texts == ("picture 0", "picture 1", "picture 2", "picture 3") * 2
    assert np.array_equal(train.images[:, 0].numpy(), GREY[[0, 1, 2, 3, 0, 1, 2, 3]])


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [([3, 0] * 10, ("0", "1", "2", "3"), [0, 0]), (["b", "a"] * 10, ("a", "b"), [0, 0]), (None, (), None)],
)
def test_a_single_parquet_file(labels: list[object] | None, classes: tuple[str, ...], codes: list[int] | None, tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", labels, column="img")
    test = open_source(tmp_path / "x.parquet", split="test")
    assert np.array_equal(test.images[:, 0].numpy(), GREY[[9, 19]])
    assert test.classes == classes
    assert (None if test.labels is None else test.labels.tolist()) == codes


def test_broken_parquet_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for labels, names, message in (
        ([0, 1, 2], ["cat", "dog"], r"x\.parquet: label 2 of image 2 is outside 0\.\.1"),
        ([0, -1, 1], ["cat", "dog"], r"x\.parquet: label -1 of image 1 is outside"),
        ([0, None, 1], ["cat", "dog"], r"x\.parquet.*image 1 has no label but others do"),
        ([0.5, 1.5], None, r"x\.parquet.*not float"),
    ):
        write_parquet(path, labels, names)
        with pytest.raises(UserError, match=message):
            open_source(path)
    write_parquet(path, None, text=["a"] * 19 + [None])
    with pytest.raises(UserError, match=r"x\.parquet row 19 has no text"):
        open_source(path)
    pq.write_table(pa.table({"pixels": [1, 2]}), path)
    with pytest.raises(UserError, match=r"x\.parquet has no image column"):
        open_source(path)
    for data, message in ((png(GREY[0])[:60], "row 1 cannot be decoded"), (b"GIF89a", "row 1 is not a PNG"), (None, "row 1: .* no bytes")):
        pq.write_table(pa.table({"image": [{"bytes": png(GREY[0]), "path": ""}, {"bytes": data, "path": ""}]}), path)
        with pytest.raises(UserError, match=rf"x\.parquet {message}"):
            open_source(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"x\.parquet cannot be read as Parquet"):
        open_source(path)


def test_npz_is_read_as_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    path = tmp_path / "out" / "s.npz"
    write_npz(path, torch.from_numpy(images), torch.arange(20) % 2, ("cat", "dog"))
    data = open_source(path, split="all")
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), images)
    assert data.labels.tolist() == [0, 1] * 10
    assert data.classes == ("cat", "dog")
    assert data.name == "s"
    assert [len(open_source(path, split=split)) for split in ("train", "test")] == [18, 2]
    assert [p.name for p in path.parent.iterdir()] == ["s.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"images", "labels", "classes"}
        assert file["images"].shape == (20, 6, 5, 3)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.npz"
    write_npz(path, GREY[..., None])

    def half(file: io.BufferedWriter, **_: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="disk full"):
        write_npz(path, GREY[:3, ..., None])
    assert len(open_source(path, split="all")) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


GOOD = GREY[..., None]
BROKEN_NPZ = {
    "no images": ({"arr_0": GOOD}, "no array named 'images'"),
    "dtype": ({"images": GOOD / 255}, "'images' is float64"),
    "shape": ({"images": GOOD.transpose(0, 3, 1, 2)}, r"'images' is uint8 \(20, 1, 5, 4\)"),
    "empty": ({"images": GOOD[:0]}, "'images' is uint8"),
    "pickled": ({"images": GOOD, "labels": np.array([{}] * 20, dtype=object)}, "pickled objects, which are never read"),
    "label count": ({"images": GOOD, "labels": np.zeros(19, np.int64)}, r"'labels' is int64 \(19,\)"),
    "label dtype": ({"images": GOOD, "labels": np.zeros(20)}, "'labels' is float64"),
    "label above": ({"images": GOOD, "labels": np.full(20, 2), "classes": np.array(["a", "b"])}, r"label 2 of image 0 is outside 0\.\.1"),
    "label below": ({"images": GOOD, "labels": np.full(20, -1)}, "label -1 of image 0 is outside"),
    "classes": ({"images": GOOD, "labels": np.zeros(20, np.int64), "classes": np.arange(3)}, "'classes' is int64"),
}


@pytest.mark.parametrize("case", BROKEN_NPZ)
def test_broken_npz_is_one_clear_line(case: str, tmp_path: Path) -> None:
    arrays, message = BROKEN_NPZ[case]
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        open_source(tmp_path / "s.npz")
    assert "s.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 30, 300])
def test_a_truncated_npz_is_one_clear_line(keep: int, tmp_path: Path) -> None:
    write_npz(tmp_path / "s.npz", GOOD)
    (tmp_path / "s.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:keep])
    with pytest.raises(UserError, match=r"s\.npz cannot be read"):
        open_source(tmp_path / "s.npz")
    np.save(tmp_path / "single.npy", GOOD)
    (tmp_path / "single.npy").rename(tmp_path / "s.npz")
    with pytest.raises(UserError, match="single array"):
        open_source(tmp_path / "s.npz")


def test_real_mnist() -> None:
    path = shared_data("mnist")
    train, test = open_source(path), open_source(path, split="test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert tuple(train.info.shape) == (1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert torch.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert train.classes == tuple("0123456789")
    assert abs(train.images.float().mean() / 255 - 0.1307) < 1e-4


def test_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_data("cifar10")
    test = open_source(path, split="test")
    assert len(test) == 10_000
    assert tuple(test.info.shape) == (3, 32, 32)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    row = pq.read_table(path / "test-00000-of-00001.parquet").slice(17, 1).to_pylist()[0]
    assert np.array_equal(test.images[17].permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))))
    assert test.labels[17] == row["label"]
    assert test.classes[0] == "airplane"
    monkeypatch.setattr(listing, "decode_all", lambda items, config, failed: torch.zeros((len(items), 3, 1, 1), dtype=torch.uint8))
    train = open_source(path)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert train.classes == test.classes


def test_real_emoji() -> None:
    path = shared_data("emoji") / "twemoji"
    train, test = (open_source(path, DataConfig(resolution=32), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1256, 139)
    assert train.classes == test.classes
    assert len(train.classes) == 8
    rows = sorted((json.loads(line) for line in (path / "metadata.jsonl").read_text().splitlines()), key=lambda row: row["file_name"])
    assert [row["text"] for row in rows[9::10]] == list(test.texts)
    assert [row["label"] for row in rows[9::10]] == [test.classes[i] for i in test.labels.tolist()]
    assert tuple(train.info.shape) == (3, 32, 32)
    assert set(test.labels.tolist()) == set(range(8))
