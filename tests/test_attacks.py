"""Files made to do harm: each is refused with its reason in one line and status 2; no code runs, nothing outside is read, written or removed."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from commands import pixelkiln
from pixelkiln.core.files import MAX_JSON, sha256
from pixelkiln.core.runs import Run
from pixelkiln.core.types import UserError
from pixelkiln.data import npz, open_source
from pixelkiln.engine.log import Log
from pixelkiln.engine.train import Order, train
from pixelkiln.engine.where import Where

QUIET = ("--precision", "fp32", "--quiet")
CANARY = "canary"


class Bomb:
    """Unpickled, it makes a folder in the working directory."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (CANARY,)



@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run, whole."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert pixelkiln("train", "vae-mlp", "--data", "digits", "--out", out, "--size", "tiny", "--steps", 4, "--train.save_every", 2, *QUIET) == 0
    return out


@pytest.fixture()
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What takes more than 2 GB above what is in use fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refused(capsys: pytest.CaptureFixture[str], says: str, *words: object) -> None:
    """Status 2, one line, the reason; and nothing was executed."""
    capsys.readouterr()
    assert pixelkiln(*words, *(QUIET if words[0] != "list" else ())) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("pixelkiln: ")
    assert says in lines[0]
    assert len(lines[0]) < 700
    assert not Path(CANARY).exists()


def everywhere(capsys: pytest.CaptureFixture[str], says: str, run: Path) -> None:
    """Every verb that opens a run refuses it."""
    for words in (("show", run), ("sample", run, "--out", "s.png", "-n", 1), ("evaluate", run, "-n", 2), ("train", "--resume", "--out", run),
                  ("interpolate", run, "--out", "i.png", "--frames", 2)):
        refused(capsys, says, *words)
    assert not Path("s.png").exists()


def sealed(run: Path, name: str, data: bytes) -> None:
    """Put a file into all checkpoints, with the hash that their manifests then need: only the parser protects now."""
    for point in Run(run).points():
        (point / name).write_bytes(data)
        manifest = json.loads((point / "manifest.json").read_text())
        manifest[name] = {"bytes": len(data), "sha256": sha256(point / name)}
        (point / "manifest.json").write_text(json.dumps(manifest))


def edited(run: Path, name: str, value: Any) -> None:
    """recipe.json with one entry changed, by dotted name."""
    facts = part = json.loads((run / "recipe.json").read_text())
    *path, last = name.split(".")
    for key in path:
        part = part[int(key) if isinstance(part, list) else key]
    part[last] = value
    (run / "recipe.json").write_text(json.dumps(facts))


# ---- pickles


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "last.ckpt", "pytorch_model.bin", "x.pkl", "x.PICKLE"])
def test_pickles_by_their_names(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_bytes(pickle.dumps(Bomb()))
    for words in (("sample", name, "--out", "s.png"), ("show", name), ("evaluate", name, "--data", "digits")):
        refused(capsys, "pickle", *words)


def test_pickles_under_other_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_train = ("train", "pca", "--out", "new", "--size", "tiny", "--data")
    data = pickle.dumps(Bomb())
    for name in ("a.npz", "b.parquet"):
        Path(name).write_bytes(data)
        refused(capsys, name, *to_train, name)
    np.savez("objects.npz", images=np.array([Bomb()], dtype=object), allow_pickle=True)
    refused(capsys, "pickled objects, which are never read", *to_train, "objects.npz")
    Path("folder").mkdir()
    Path("folder/a.png").write_bytes(data)
    refused(capsys, "not a PNG, JPEG, WebP or BMP", *to_train, "folder")
    Path("idx").mkdir()
    Path("idx/train-images-idx3-ubyte").write_bytes(data)
    refused(capsys, "does not begin as an IDX file", *to_train, "idx")
    assert not Path("new").exists()
    sealed(run, "weights.safetensors", data)
    everywhere(capsys, "not a readable safetensors file", run)


@pytest.mark.parametrize("name", ["recipe.json", "metrics.jsonl", "evaluation.json"])
def test_pickles_in_the_place_of_json(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).write_bytes(pickle.dumps(Bomb()))
    if name == "metrics.jsonl":
        assert pixelkiln("show", run) == 0
        assert not Path(CANARY).exists()
    else:
        refused(capsys, f"{name}: not valid JSON", "show", run)


def test_a_poisoned_cache_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelkiln.engine.features import ExtractorConfig, extractor_for

    monkeypatch.chdir(tmp_path)
    config = ExtractorConfig(images=256, width=4)
    first = extractor_for(open_source("digits"), cache_dir=tmp_path / "cache", config=config)
    (first.folder / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    again = extractor_for(open_source("digits"), cache_dir=tmp_path / "cache", config=config)
    assert again.weights == first.weights
    assert not Path(CANARY).exists()


# ---- recipes that name code


@pytest.mark.parametrize("name", ["os:system", "evil:recipe", "run/evil.py:recipe", "evil.py:recipe"])
def test_code_that_a_run_names_is_not_imported(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (Path("evil.py"), run / "evil.py"):
        place.write_text(f"import os\nos.mkdir({CANARY!r})\n")
    edited(run, "recipe", name)
    everywhere(capsys, "which is not part of pixelkiln; if you trust it, say --recipe", run)


@pytest.mark.parametrize("name", ["os.system", "__import__('os')", "../evil", "evil", "vae_mlp\n", ""])
def test_a_name_that_is_no_recipe_is_unknown(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("evil.py").write_text(f"import os\nos.mkdir({CANARY!r})\n")
    edited(run, "recipe", name)
    refused(capsys, "unknown recipe", "show", run)


def test_class_paths_in_a_configuration_are_unknown_fields(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(run, "stages.0.model", {"_target_": "os.mkdir", "args": [CANARY]})
    everywhere(capsys, "unknown field '_target_'", run)


# ---- safetensors


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by its specification: the header's length, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        tensors({"a": entry([2**62, 2**62], 0, 8)}, bytes(8)),
        tensors({"a": entry([2**40], 0, 2**42)}),
        tensors({"a": entry([4], 0, 8)}, bytes(8)),
        tensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        tensors({"a": entry([-2], 0, 8)}, bytes(8)),
        tensors({"a": entry([2], 8, 0)}, bytes(8)),
        tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        tensors(b"{}", length=2**63 - 1),
        tensors(b"{}", length=10**8 + 1),
        tensors(b'{"a":' + b"[" * 50_000),
        tensors({"a": entry([2], 0, 8, "O")}, bytes(8)),
        tensors({"a": entry([2], 0, 8)}, bytes(9)),
        b"",
        b"PK\x03\x04",
    ],
    ids=["overflow", "beyond", "short", "overlap", "negative", "backward", "duplicate", "header 2^63", "header 100 MB", "deep", "object", "trailing",
         "empty", "zip"],
)
def test_safetensors_that_lie(run: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    sealed(run, "weights.safetensors", data)
    says = " fit" if data.count(b'"a"') == 2 else "weights.safetensors: not a readable safetensors file"  # of two entries of one name, the last one counts
    refused(capsys, says, "sample", run, "--out", "s.png")
    shutil.rmtree(Run(run).points()[-1])  # so that there is something left to train
    refused(capsys, says, "train", "--resume", "--out", run)


def test_weights_of_another_shape_or_kind(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Run(run).checkpoint().tensors("weights")
    first = next(iter(weights))
    for changed in ({first: weights[first][:1]}, {first: weights[first].to(torch.int8)}, {"more": torch.zeros(1)}):
        sealed(run, "weights.safetensors", save({k: v.contiguous().clone() for k, v in (weights | changed).items()}))
        refused(capsys, "do not fit the recipe", "sample", run, "--out", "s.png")


def test_moments_that_do_not_fit_are_not_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(Run(run).points()[-1])  # so that there is something left to train
    for data in ({"main.0.exp_avg": torch.zeros(3)}, {"other.0.step": torch.zeros(())}, {"main.999.step": torch.zeros(())}, {"x": torch.zeros(1)}):
        sealed(run, "optim.safetensors", save(data))
        refused(capsys, "does not fit its recipe", "train", "--resume", "--out", run)


# ---- numbers


@pytest.mark.parametrize(
    ("name", "value"),
    [("data.shape", [1, 10**6, 10**6]), ("data.shape", [2**31, 1, 1]), ("data.shape", [1, 0, 8]), ("data.shape", [-1, 8, 8]), ("data.shape", [1, 8]),
     ("data.shape", [1.5, 8, 8]), ("data.classes", [1, 2]), ("data.counts", [1]), ("data.counts", [-1] * 10), ("total", -1), ("total", 10**400),
     ("total", True), ("seed", "0"), ("size", "huge"), ("stage", "other"), ("stages", []), ("stages", [1]), ("stages.0.parents", 3),
     ("stages.0.train.steps", 1e3), ("stages.0.train.opts", {"main": None}), ("parents", {"base": 7}), ("parents", []),
     ("where", None), ("versions", 3)],
)
def test_numbers_that_make_no_sense(run: Path, name: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    edited(run, name, value)
    refused(capsys, "", "sample", run, "--out", "s.png")
    refused(capsys, "", "show", run)


@pytest.mark.parametrize("field", ["width", "latent", "layers", "components"])
def test_a_network_that_does_not_fit_into_memory_is_not_begun(run: Path, field: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = json.loads((run / "recipe.json").read_text())["stages"][0]["model"]
    whole = [k for k, v in model.items() if isinstance(v, int) and not isinstance(v, bool)]
    for name in whole:
        edited(run, f"stages.0.model.{name}", 10**7)
    assert whole
    refused(capsys, "", "sample", run, "--out", "s.png")


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, '{"recipe": ' + "9" * 100_000 + "}", '{"recipe": NaN}', '{"recipe": -Infinity}', "\ufeff{}", "null",
                                  "[]", "7", '"recipe"', "{}"])
def test_json_bombs(run: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("recipe.json", "evaluation.json"):
        kept = (run / name).read_bytes() if (run / name).exists() else None
        (run / name).write_text(text)
        refused(capsys, name, "show", run)
        if kept is None:
            (run / name).unlink()
        else:
            (run / name).write_bytes(kept)
    for name in ("state.json", "manifest.json"):
        copy = shutil.copytree(run, f"{name}.run")
        for point in Run(copy).points():
            (point / name).write_text(text)
        refused(capsys, "no usable checkpoint", "show", copy)


def test_json_without_end(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(run / "recipe.json", "r+b") as f:
        f.truncate(MAX_JSON + 1)
    refused(capsys, "more than 64 MB", "show", run)


def test_a_metrics_line_can_be_anything(run: Path) -> None:
    with open(run / "metrics.jsonl", "ab") as f:
        f.write(b"\n".join([b"[" * 100_000, b'{"step": "x"}', b'{"step": 1, "loss": {"a": 1}}', b'{"step": 5, "seconds": NaN}', b"\xff\xfe", b'{"step": ' + b"9" * 5000]))
    assert pixelkiln("show", run) == 0
    assert pixelkiln("train", "--resume", "--out", run, *QUIET) == 0


# ---- images


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def big(kind: str) -> bytes:
    """An image whose header promises 65,000 x 65,000 pixels."""
    if kind == "PNG":
        return png(65_000, 65_000, zlib.compress(bytes(2**20)))
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, kind)
    data = bytearray(out.getvalue())
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", 65_000, 65_000)
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_images_of_four_billion_pixels(run: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    Path("folder/a.png").write_bytes(big(kind))
    refused(capsys, "million pixels", "train", "pca", "--data", "folder", "--out", "new")
    from pixelkiln.core.images import read_image

    with pytest.raises(UserError, match="pixels"):
        read_image("folder/a.png")


def test_an_npz_that_unpacks_to_more_than_the_memory(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez_compressed("bomb.npz", images=np.zeros((1000, 100, 1000), np.uint8))
    assert Path("bomb.npz").stat().st_size < 2**20
    monkeypatch.setattr(npz, "memory", lambda: 10**8 - 1)
    refused(capsys, "unpacks to 0 GB, more than this machine has memory", "train", "pca", "--data", "bomb.npz", "--out", "new")


def test_an_npz_whose_header_promises_what_is_not_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shape in ((10**5, 1000, 1000), (2**62, 2**62), (10**18,)):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile("lie.npz", "w") as z:
            z.writestr("images.npy", head.getvalue() + bytes(100))
        refused(capsys, "lie.npz", "train", "pca", "--data", "lie.npz", "--out", "new")


# ---- ways out of a folder


@pytest.mark.parametrize("part", ["recipe.json", "metrics.jsonl", "checkpoints", "samples", "stages", "evaluation.json", "report.html"])
def test_a_link_in_a_run_folder_leads_nowhere(run: Path, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resuming would otherwise write to what it leads to, or clear it."""
    outside = tmp_path / "outside"
    if (run / part).is_dir() or not (run / part).exists():
        shutil.copytree(run, outside) if part in ("stages", "evaluation.json") else shutil.move(run / part, outside)
    else:
        shutil.move(run / part, outside)
    before = {p: p.read_bytes() if p.is_file() else b"" for p in (outside, *outside.rglob("*"))}
    (run / part).symlink_to(outside)
    everywhere(capsys, f"{part} is a link", run)
    assert {p: p.read_bytes() if p.is_file() else b"" for p in (outside, *outside.rglob("*"))} == before


def test_links_and_foreign_files_in_a_checkpoint_are_passed_over(run: Path, tmp_path: Path) -> None:
    point = Run(run).points()[-1]
    shutil.move(point / "weights.safetensors", tmp_path / "w")
    (point / "weights.safetensors").symlink_to(tmp_path / "w")
    assert "weights.safetensors is damaged" in str(Run(run).verify(point))
    assert Run(run).checkpoint().path != point


def test_a_manifest_that_names_files_outside(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    for point in Run(run).points():
        manifest = json.loads((point / "manifest.json").read_text())
        manifest["../../../secret"] = {"bytes": 1, "sha256": sha256(secret)}
        (point / "manifest.json").write_text(json.dumps(manifest))
    refused(capsys, "'../../../secret' is missing", "sample", run, "--out", "s.png")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "a.png\0", "."])
def test_metadata_that_names_files_outside(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder/a").mkdir(parents=True)
    Path("secret.png").write_bytes(png(1, 1, zlib.compress(bytes(4))))
    Path("folder/metadata.jsonl").write_text(json.dumps({"file_name": name}) + "\n")
    refused(capsys, "metadata.jsonl line 1 names", "train", "pca", "--data", "folder", "--out", "new")


def test_pipes_devices_and_links_to_other_files_are_no_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    for make, says in ((lambda p: os.mkfifo(p), "is not a file"), (lambda p: p.symlink_to("/dev/zero"), "is not a file"),
                       (lambda p: p.symlink_to("/etc/passwd"), "is not a PNG"), (lambda p: p.symlink_to("nowhere"), "is not a file")):
        path = Path("folder/a.png")
        make(path)
        refused(capsys, says, "train", "pca", "--data", "folder", "--out", "new")
        path.unlink()


def test_a_pipe_in_a_run_folder_is_not_waited_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "recipe.json").unlink()
    os.mkfifo(run / "recipe.json")
    refused(capsys, "recipe.json: no such file", "show", run)


def test_parents_that_lead_astray(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys, edit = f"{Path(__file__).with_name('toys.py')}:two_stage", Path("edit")
    train(Order(toys, "digits", edit, "tiny"), Where("cpu", "fp32", False, torch.get_num_threads()), log=Log(quiet=True))
    for where, says in (("../../../../../../etc", "not a run folder"), (".", "parents without end"), (str(run), "is not the run that"), ("nowhere", "is not there")):
        edited(edit, "parents.codec.run", where)
        refused(capsys, says, "show", edit, "--recipe", toys)
    edited(edit, "parents.codec", {"run": 3})
    refused(capsys, "is not described", "show", edit, "--recipe", toys)
