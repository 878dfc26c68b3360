"""Image folders in every layout, and what a user may get wrong about them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import UserError
from pixelkiln.data import open_source


def put(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def values(folder: Path, split: str = "all") -> list[int]:
    return open_source(folder, split=split).images[:, 0, 0, 0].tolist()


def test_a_plain_folder_is_read_in_order_and_each_tenth_held_out(tmp_path: Path) -> None:
    for i in range(20):
        put(tmp_path / f"{i:02}.{('png', 'PNG', 'bmp')[i % 3]}", i)
    put(tmp_path / ".hidden.png", 99)
    (tmp_path / "README.md").write_text("no image")
    assert values(tmp_path) == list(range(20))
    assert values(tmp_path, "test") == [9, 19]
    assert values(tmp_path, "train") == [*range(9), *range(10, 19)]
    data = open_source(tmp_path)
    assert data.labels is None
    assert data.classes == ()
    assert data.texts is None
    assert data.name == tmp_path.name


def test_one_folder_a_class(tmp_path: Path) -> None:
    for i, name in enumerate(["dog/b.png", "cat/a.png", "cat/deep/c.png", "train/t.png"]):  # a lone "train" is a class
        put(tmp_path / name, i)
    data = open_source(tmp_path, split="all")
    assert data.classes == ("cat", "dog", "train")
    assert data.labels.tolist() == [0, 0, 1, 2]
    assert values(tmp_path) == [1, 2, 0, 3]


@pytest.mark.parametrize("test", ["test", "val", "validation", "valid"])
def test_train_and_test_folders(test: str, tmp_path: Path) -> None:
    for i, name in enumerate(["train/dog/1.png", "train/fox/1.png", f"{test}/cat/1.png", f"{test}/dog/1.png"]):
        put(tmp_path / name, i)
    train, held = open_source(tmp_path), open_source(tmp_path, split="test")
    assert train.classes == held.classes == ("cat", "dog", "fox")
    assert train.labels.tolist() == [1, 2]
    assert held.labels.tolist() == [0, 1]
    assert values(tmp_path, "test") == [2, 3]
    with pytest.raises(UserError, match="ask for one of them"):
        open_source(tmp_path, split="all")


ROWS = [
    {"file_name": "b.png", "text": "a left, a comma", "label": "y", "other": "1"},
    {"file_name": "sub/a.png", "text": "ünï", "label": "x", "other": "2"},
]


def describe(path: Path, rows: list[dict[str, object]], mark: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_metadata_gives_captions_and_labels(name: str, mark: str, tmp_path: Path) -> None:
    describe(tmp_path / name, ROWS, mark)
    put(tmp_path / "b.png", 1)
    put(tmp_path / "sub" / "a.png", 2)
    data = open_source(tmp_path, split="all")
    assert data.texts == ("a left, a comma", "ünï")
    assert data.classes == ("x", "y")
    assert data.labels.tolist() == [1, 0]
    assert values(tmp_path) == [1, 2]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_integer_labels_name_themselves(name: str, tmp_path: Path) -> None:
    describe(tmp_path / name, [{"file_name": f"{i}.png", "label": i % 3 * 5} for i in range(6)])
    for i in range(6):
        put(tmp_path / f"{i}.png")
    data = open_source(tmp_path, split="all")
    assert data.labels.tolist() == [0, 5, 10, 0, 5, 10]
    assert data.classes == tuple(str(i) for i in range(11))
    assert data.texts is None


def test_metadata_of_each_split_or_of_all(tmp_path: Path) -> None:
    for place in ("each", "all"):
        root = tmp_path / place
        for i, name in enumerate(["train/1.png", "test/1.png"]):
            put(root / name, i)
        if place == "each":
            describe(root / "train" / "metadata.jsonl", [{"file_name": "1.png", "label": "b"}])
            describe(root / "test" / "metadata.jsonl", [{"file_name": "1.png", "label": "a"}])
        else:
            describe(root / "metadata.csv", [{"file_name": "train/1.png", "label": "b"}, {"file_name": "test/1.png", "label": "a"}])
        train, test = open_source(root), open_source(root, split="test")
        assert train.classes == test.classes == ("a", "b")
        assert train.labels.tolist() == [1]
        assert test.labels.tolist() == [0]
        assert values(root, "train") == [0]
        assert values(root, "test") == [1]


def test_links_into_a_store_are_followed(tmp_path: Path) -> None:
    """A snapshot of the Hub is a folder of links."""
    put(tmp_path / "blobs" / "b.png", 7)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.png").symlink_to(tmp_path / "blobs" / "b.png")
    describe(tmp_path / "snapshot" / "metadata.jsonl", [{"file_name": "./a.png", "text": "seven"}])
    assert values(tmp_path / "snapshot") == [7]


def truncated(root: Path) -> None:
    put(root / "a.png", size=(64, 64))
    (root / "a.png").write_bytes((root / "a.png").read_bytes()[:60])


def wrong_metadata(text: str, name: str = "metadata.jsonl") -> Callable[[Path], object]:
    def build(root: Path) -> None:
        put(root / "a.png")
        put(root / "b.png")
        (root / name).write_text(text)

    return build


def files(*names: str) -> Callable[[Path], object]:
    return lambda root: [put(root / name) for name in names]


def bare(*names: str) -> Callable[[Path], object]:
    return lambda root: [(root / name).write_bytes(b"x" * 64) for name in names]


BOTH = '{"file_name": "a.png"%s}\n{"file_name": "b.png"%s}\n'
MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda root: None, r"holds no images"),
    "empty train": (lambda root: (root / "train").mkdir(), r"holds no images"),
    "no images": (bare("notes.txt"), r"holds no images"),
    "truncated": (truncated, r"a\.png cannot be decoded"),
    "not an image": (bare("a.png"), r"a\.png is not a PNG, JPEG, WebP or BMP"),
    "no bytes": (lambda root: (root / "a.jpg").touch(), r"a\.jpg is not a PNG"),
    "unsupported": (files("a.png", "b.tiff"), r"b\.tiff: tiff is not supported"),
    "mixed": (files("a.png", "cat/b.png"), r"a\.png lies beside class folders"),
    "mixed splits": (files("train/cat/a.png", "test/b.png"), r"has no label but others do"),
    "archive": (bare("x.tar"), r"x\.tar cannot be read as \.tar"),
    "sizes": (lambda root: [put(root / "a.png"), put(root / "b.png", size=(5, 4))], r"b\.png is 5x4: pass --data\.resolution"),
    "missing file": (
        wrong_metadata(BOTH % ("", "") + '{"file_name": "c.png"}'),
        r"metadata\.jsonl line 3 names c\.png, which does not exist",
    ),
    "outside": (wrong_metadata('{"file_name": "../a.png"}'), r"line 1 names \.\./a\.png, which is outside"),
    "absolute": (wrong_metadata('{"file_name": "/etc/a.png"}'), r"which is outside"),
    "left out": (wrong_metadata('{"file_name": "a.png"}'), r"b\.png is not named in metadata\.jsonl"),
    "no file_name": (wrong_metadata('{"text": "a"}'), r"line 1 has no file_name"),
    "no object": (wrong_metadata("[1]"), r"line 1 is not a JSON object"),
    "no json": (wrong_metadata('{"file_name": "a.png"}\n{"file'), r"metadata\.jsonl is not valid JSON \(line 2\)"),
    "csv field": (wrong_metadata("name,text\na.png,x\n", "metadata.csv"), r"metadata\.csv line 2 has no file_name"),
    "csv quotes": (wrong_metadata('file_name\n"a.png"x\n', "metadata.csv"), r"metadata\.csv is not valid CSV"),
    "some labels": (wrong_metadata(BOTH % (', "label": "x"', "")), r"has no label but others do"),
    "mixed labels": (wrong_metadata(BOTH % (', "label": "x"', ', "label": 1')), r"all integers or all strings, not int, str"),
    "negative label": (wrong_metadata(BOTH % (', "label": 0', ', "label": -1')), r"label -1 of image 1 is outside"),
    "odd label": (wrong_metadata(BOTH % (', "label": [1]', "")), r"line 1: label \[1\] is neither"),
    "some texts": (wrong_metadata(BOTH % (', "text": "x"', "")), r"b\.png has no text but others do"),
    "odd text": (wrong_metadata(BOTH % (', "text": 3', "")), r"line 1: text 3 is not a string"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_clear_line(case: str, tmp_path: Path) -> None:
    build, message = MISTAKES[case]
    build(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        open_source(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_to_hold_out(tmp_path: Path) -> None:
    files("a.png", "b.png")(tmp_path)
    assert len(open_source(tmp_path)) == 2
    with pytest.raises(UserError, match="too few to hold out"):
        open_source(tmp_path, split="test")


@pytest.mark.parametrize(
    ("src", "message"),
    [
        ("nowhere/at/all", "nowhere/at/all does not exist: give a path, or one of digits, shapes"),
        ("digit", "did you mean 'digits'"),
        ("hf:mnist", "is not hf:owner/name"),
    ],
)
def test_sources_that_are_not_there(src: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(src)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.tar.gz", "cannot be read as .tar"),
        ("x.ZIP", "cannot be read as .zip"),
        ("x.7z", "of archives, .zip, .tar and .tar.gz are read"),
        ("x.png", "neither .npz nor .parquet nor an archive"),
        ("train-images-idx3-ubyte.gz", "give the folder"),
        ("metadata.jsonl", "give the folder"),
    ],
)
def test_files_that_are_no_source(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / name)


def test_a_resolution_makes_all_sizes_one(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 10, (9, 4))
    put(tmp_path / "b.png", 20, (4, 7))
    assert open_source(tmp_path, DataConfig(resolution=6, channels=3)).images.shape == (2, 3, 6, 6)


def test_an_embedded_name_is_told_from_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "digits" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(open_source("./digits")) == len(open_source(Path("digits"))) == 1
    assert len(open_source("digits")) == 1438
