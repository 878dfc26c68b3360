"""Archives are read as the folder that was packed, wherever a member lies, and hostile ones are refused with their reason."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pixelkiln.core.types import UserError
from pixelkiln.data import archive, open_source, tars
from pixelkiln.data.sources import list_source


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


Files = dict[str, bytes]


def zipped(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def tarred(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w", format=form) as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def unpacked(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


PACKERS: dict[str, Callable[[Path, Files], Path]] = {
    "deflated.zip": zipped,
    "stored.zip": lambda path, files: zipped(path, files, zipfile.ZIP_STORED),
    "pax.tar": tarred,
    "gnu.tar": lambda path, files: tarred(path, files, tarfile.GNU_FORMAT),
    "ustar.tar": lambda path, files: tarred(path, files, tarfile.USTAR_FORMAT),
    "x.tar.gz": tarred,
    "x.tgz": tarred,
}
LONG = "ü" * 30 + "/" + "n" * 90  # more than the 100 bytes of a plain header
LAYOUTS: dict[str, Files] = {
    "plain": {f"{i:02}.png": png(i) for i in range(20)} | {"README.md": b"no image"},
    "classes": {f"{'ba'[i % 2]}/{i:02}.png": png(i) for i in range(20)},
    "splits": {f"{'train' if i % 4 else 'test'}/{'ba'[i % 2]}/{i:02}.png": png(i) for i in range(20)},
    "long": {f"{LONG}{i}.png" if i % 2 else f"c/{i}.png": png(i) for i in range(20)},
    "metadata": {f"{i:02}.png": png(i) for i in range(20)}
    | {"metadata.jsonl": b"".join(json.dumps({"file_name": f"{i:02}.png", "label": i % 3, "text": f"{i} ü"}).encode() + b"\n" for i in range(20))},
}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_archive_is_read_as_the_folder_that_was_packed(name: str, layout: str, tmp_path: Path) -> None:
    files = LAYOUTS[layout]
    folder, packed = unpacked(tmp_path / "folder", files), PACKERS[name](tmp_path / name, files)
    for split in ("train", "test"):
        expected, found = open_source(folder, split=split), open_source(packed, split=split)
        assert torch.equal(found.images, expected.images)
        assert (found.classes, found.texts) == (expected.classes, expected.texts)
        assert (found.labels is None) == (expected.labels is None)
        assert found.labels is None or torch.equal(found.labels, expected.labels)
        assert found.digest() == expected.digest()
    assert {p.name for p in tmp_path.iterdir()} == {"folder", name}  # nothing was extracted


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_members_are_read_one_by_one_in_any_order(name: str, tmp_path: Path) -> None:
    listing = list_source(PACKERS["pax.tar" if name == "x.tar" else "deflated.zip"](tmp_path / name, LAYOUTS["plain"]), "all")
    for i in (19, 0, 7, 7, 12):
        assert listing.items[i].source.read() == LAYOUTS["plain"][f"{i:02}.png"]
        assert listing.items[i].source.size == len(LAYOUTS["plain"][f"{i:02}.png"])


def test_a_folder_around_everything_is_left_away_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    files = {f"my set/inner/{name}": data for name, data in LAYOUTS["classes"].items()}
    files |= {"my set/.DS_Store": b"x", "__MACOSX/my set/._a.png": b"x", "my set/inner/.git/a.png": b"x"}
    assert open_source(zipped(tmp_path / "x.zip", files)).classes == ("a", "b")
    assert open_source(zipped(tmp_path / "y.zip", {f"train/{i}.png": png(i) for i in range(10)})).labels is None


def shards(root: Path, names: list[str], fields: Callable[[int], Files]) -> Path:
    root.mkdir()
    for k, name in enumerate(names):
        tarred(root / name, {f"{i:04}{end}": data for i in range(5 * k, 5 * k + 5) for end, data in fields(i).items()})
    return root


def test_shards_with_webdatasets_names(tmp_path: Path) -> None:
    def fields(i: int) -> Files:
        return {".png": png(i), ".cls": f"{i % 3}\n".encode(), ".txt": f"number {i}".encode(), ".xml": b"<other>"}

    root = shards(tmp_path / "s", ["train-000000.tar", "train-000001.tar.gz", "test-000000.tar"], fields)
    train, test = open_source(root), open_source(root, split="test")
    assert train.images[:, 0, 0, 0].tolist() == list(range(10))
    assert test.images[:, 0, 0, 0].tolist() == list(range(10, 15))
    assert train.labels.tolist() == [i % 3 for i in range(10)]
    assert train.classes == test.classes == ("0", "1", "2")
    assert train.texts == tuple(f"number {i}" for i in range(10))
    assert train.name == "s"


def test_json_fields_and_shards_without_splits(tmp_path: Path) -> None:
    def fields(i: int) -> Files:
        row = {"label": "ab"[i % 2], "caption": f"a {i}"} if i % 2 else {"label": "ab"[i % 2], "text": f"a {i}", "other": [1]}
        return {".jpg" if i % 5 else ".PNG": png(i), ".json": json.dumps(row).encode()}

    data = open_source(shards(tmp_path / "s", ["00000.tar", "00001.tar"], fields), split="all")
    assert data.images[:, 0, 0, 0].tolist() == list(range(10))
    assert data.classes == ("a", "b")
    assert data.texts == tuple(f"a {i}" for i in range(10))
    assert open_source(tmp_path / "s", split="test").texts == ("a 9",)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    info.pax_headers = {key: str(value) for key, value in more.items()}
    return info, data


def hostile_tar(*members: tuple[tarfile.TarInfo, bytes], end: str = ".tar") -> Callable[[Path], Path]:
    def build(root: Path) -> Path:
        path = root / f"x{end}"
        with tarfile.open(path, "w:gz" if end.endswith("gz") else "w", format=tarfile.PAX_FORMAT) as file:
            for info, data in (member("a.png", png(0)), *members):
                file.addfile(info, io.BytesIO(data))
        return path

    return build


def hostile_zip(name: str | zipfile.ZipInfo, data: bytes = b"x", mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], Path]:
    def build(root: Path) -> Path:
        info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, method
        with zipfile.ZipFile(root / "x.zip", "w") as file:
            file.writestr("a.png", png(0))
            file.writestr(info, data)
        return root / "x.zip"

    return build


def patched(build: Callable[[Path], Path], change: Callable[[bytearray], None]) -> Callable[[Path], Path]:
    def broken(root: Path) -> Path:
        path = build(root)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
        return path

    return broken


def central(field: int, code: str, value: int) -> Callable[[bytearray], None]:
    """Changes a field of the last entry of a zip's central directory."""
    return lambda data: struct.pack_into(code, data, data.rindex(b"PK\1\2") + field, value)


def checksum(head: bytearray, at: int) -> None:
    head[at + 148 : at + 156] = b"        "
    head[at + 148 : at + 156] = b"%06o\0 " % sum(head[at : at + 512])


def base256(data: bytearray, value: bytes) -> None:
    at = data.index(b"b.png")
    data[at + 124 : at + 136] = value
    checksum(data, at)


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tar up": (hostile_tar(member("../../b.png", png(1))), "leads out of the archive"),
    "tar absolute": (hostile_tar(member("/etc/b.png", png(1))), "leads out of the archive"),
    "tar hidden up": (hostile_tar(member("c/../../b.png", png(1))), "leads out of the archive"),
    "tar symlink": (hostile_tar(member("b.png", kind=tarfile.SYMTYPE, link="/etc/passwd")), r"b\.png is a symbolic link: refused"),
    "tar hard link": (hostile_tar(member("b.png", kind=tarfile.LNKTYPE, link="a.png")), "is a hard link: refused"),
    "tar device": (hostile_tar(member("b.png", kind=tarfile.CHRTYPE)), "is a device: refused"),
    "tar pipe": (hostile_tar(member("b.png", kind=tarfile.FIFOTYPE)), "is a pipe: refused"),
    "tar sparse": (hostile_tar(member("b.png", b"x", kind=tarfile.GNUTYPE_SPARSE)), "is a sparse file: refused"),
    "tar pax sparse": (hostile_tar(member("b.png", b"x", **{"GNU.sparse.major": 1})), "is a sparse file: refused"),
    "tar pickle": (hostile_tar(member("a.pyd", b"cos\nsystem\n")), r"a\.pyd may hold pickled objects, which run code"),
    "tar pth": (hostile_tar(member("a.PTH", b"x")), "may hold pickled objects"),
    "tar npy": (hostile_tar(member("a.npy.gz", b"x")), "may hold pickled objects"),
    "tar nested": (hostile_tar(member("b.tar.gz", b"x")), "is an archive in an archive"),
    "tar twice": (hostile_tar(member("./a.png", png(1))), r"two members named a\.png"),
    "tar line break": (hostile_tar(member("../a\nb\x1b[2J.png")), r"\.\./a\\nb\\x1b\[2J\.png has a name that leads out"),
    "tar name": (hostile_tar(member("n" * 5000)), "name has 5,000 characters"),
    "tar checksum": (patched(hostile_tar(member("b.png", png(1))), lambda data: data.__setitem__(data.index(b"b.png"), 99)), "wrong checksum"),
    "tar cut": (patched(hostile_tar(member("b.png", png(1) * 50)), lambda data: data.__delitem__(slice(2100, None))), "cut short"),
    "tar cut header": (patched(hostile_tar(member("b.png", png(1))), lambda data: data.__delitem__(slice(1200, None))), "cut short"),
    "tar negative": (patched(hostile_tar(member("b.png", png(1))), lambda data: base256(data, b"\xff" * 12)), "negative or absurd size"),
    "tar enormous": (patched(hostile_tar(member("b.png", png(1))), lambda data: base256(data, b"\x80" + b"\0" * 3 + b"\xff" * 8)), "are refused"),
    "tar pax negative": (hostile_tar(member("b.png", b"", comment="0123456789", size="-512")), "are refused"),
    "tar not gz": (lambda root: tarred(root / "x.tar", {"a.png": png(0)}).rename(root / "x.tar.gz"), "cannot be read as .tar"),
    "tar gz bomb": (hostile_tar(member("b.png", bytes(2**22)), end=".tar.gz"), "unpacks to more than 1,000,000 bytes: gunzip it"),
    "tar gz cut": (patched(hostile_tar(member("b.png", os.urandom(5000)), end=".tgz"), lambda data: data.__delitem__(slice(4000, None))), "cannot be read"),
    "zip up": (hostile_zip("../b.png"), "leads out of the archive"),
    "zip absolute": (hostile_zip("/b.png"), "leads out of the archive"),
    "zip backslash": (hostile_zip("..\\b.png"), "leads out of the archive"),
    "zip drive": (hostile_zip("C:/b.png"), "leads out of the archive"),
    "zip symlink": (hostile_zip("b.png", b"/etc/passwd", 0o120777), "is a link or a device"),
    "zip device": (hostile_zip("b.png", b"", 0o020666), "is a link or a device"),
    "zip pickle": (hostile_zip("b.pkl"), "may hold pickled objects"),
    "zip nested": (hostile_zip("b.zip"), "is an archive in an archive"),
    "zip bomb": (hostile_zip("b.png", bytes(2**24)), r"unpacks 16,\d+ bytes to 16,777,216: refused"),
    "zip bzip2": (hostile_zip("b.png", b"x", 0, zipfile.ZIP_BZIP2), "packed by method 12"),
    "zip encrypted": (patched(hostile_zip("b.png"), central(8, "<H", 1)), "is encrypted"),
    "zip enormous": (patched(hostile_zip("b.png"), central(24, "<I", 2**31)), "more than 268,435,456 are refused"),
    "zip lying size": (patched(hostile_zip("b.png", png(1) * 9), central(24, "<I", 99)), r"b\.png is damaged"),
    "zip wrong crc": (patched(hostile_zip("b.png", png(1)), central(16, "<I", 7)), r"b\.png is damaged"),
    "zip overlap": (patched(hostile_zip("b.png", png(1)), central(42, "<I", 0)), "overlaps another one"),
    "zip beyond": (patched(hostile_zip("b.png", png(1)), central(20, "<I", 2**31)), "reaches beyond the end"),
    "zip cut": (patched(hostile_zip("b.png"), lambda data: data.__delitem__(slice(60, None))), "cannot be read as .zip"),
    "shards unlabeled": (lambda root: tarred(root / "x.tar", {"a.png": png(0), "a.cls": b"0", "b.cls": b"1"}), "the key b needs one image.*has none"),
    "two images": (lambda root: tarred(root / "x.tar", {"a.png": png(0), "a.cls": b"0", "a.jpg": png(1)}), r"has a\.png, a\.jpg"),
    "dotted image": (lambda root: tarred(root / "x.tar", {"a.png": png(0), "a.cls": b"0", "b.in.png": png(1), "b.cls": b"0"}), "the key b needs one image"),
    "bad json": (lambda root: tarred(root / "x.tar", {"a.png": png(0), "a.json": b"{"}), r"a\.json is not valid JSON"),
    "deep json": (lambda root: tarred(root / "x.tar", {"a.png": png(0), "a.json": b"[" * 10**6}), r"a\.json is not valid JSON"),
    "odd label": (lambda root: tarred(root / "x.tar", {"a.png": png(0), "a.json": b'{"label": [1]}'}), "no string or integer"),
    "bad text": (lambda root: tarred(root / "x.tar", {"a.png": png(0), "a.txt": b"\xff"}), r"a\.txt is not UTF-8"),
    "no images": (lambda root: zipped(root / "x.zip", {"a.md": b"x"}), "holds no images"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_broken_archives_are_refused_with_their_reason(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_UNPACKED", 1_000_000)
    build, message = HOSTILE[case]
    path = build(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        open_source(path, split="all")
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_shards_share_the_memory_that_unpacked_ones_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_UNPACKED", 50_000)
    root = shards(tmp_path / "s", ["0.tar.gz", "1.tar.gz"], lambda i: {".png": png(i)})
    assert len(open_source(root, split="all")) == 10
    shards(tmp_path / "t", [f"{k}.tar.gz" for k in range(10)], lambda i: {".png": png(i)})
    with pytest.raises(UserError, match=r"0\.tar\.gz unpacks to more than 5,000 bytes: gunzip it"):
        open_source(tmp_path / "t")


def test_the_number_of_members_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 19)
    for path in (zipped(tmp_path / "x.zip", LAYOUTS["plain"]), tarred(tmp_path / "x.tar", LAYOUTS["plain"])):
        with pytest.raises(UserError, match="more than 19 members"):
            open_source(path)


def test_an_archive_that_changes_is_indexed_anew_and_one_that_shrinks_under_the_index_is_found_out(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar", {"a.png": png(1), "b.png": png(2)})
    listing = list_source(path, "all")
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(UserError, match=r"b\.png"):
        listing.items[1].source.read()
    tarred(path, {f"{i}.png": png(i) for i in range(3)})
    assert open_source(path, split="all").images[:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_flipped_bits_never_end_in_anything_but_images_or_one_line(name: str, tmp_path: Path) -> None:
    packed = (zipped if name == "x.zip" else tarred)(tmp_path / name, LAYOUTS["classes"]).read_bytes()
    if name == "x.tgz":
        packed = gzip.decompress(packed)
    gen = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(150):
        data = bytearray(packed)
        for at in torch.randint(0, len(data), (3,), generator=gen).tolist():
            data[at] ^= 1 << int(torch.randint(0, 8, (1,), generator=gen))
        (tmp_path / name).write_bytes(gzip.compress(data, 1) if name == "x.tgz" else data)
        archive._kept.cache_clear()
        try:
            assert open_source(tmp_path / name).images.dtype == torch.uint8
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20
