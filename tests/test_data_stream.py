"""Streamed sets give the batches of a set in memory, bit for bit, whatever decodes them and whatever happens to the processes that do."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pixelkiln.cli.main import main
from pixelkiln.cli.options import size
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.runs import Run
from pixelkiln.core.types import UserError
from pixelkiln.data import Feed, ImageSet, Streamed, ahead, open_source, pack, stream
from pixelkiln.data.ahead import Key

NUM = 60
ANY = DataConfig()
MOVED = DataConfig(resolution=12, flip=True, translate=2)


def encoded(i: int) -> bytes:
    """Image i: noise, of which each third is grey."""
    pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if i % 3 == 0 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {f"{'ab'[i % 2]}/{i:03}.png": encoded(i) for i in range(NUM)}


def folder(root: Path) -> Path:
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(root: Path) -> Path:
    with zipfile.ZipFile(root / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in FILES.items():
            file.writestr(name, data)
    return root / "x.zip"


def tarred(root: Path, name: str = "x.tar") -> Path:
    with tarfile.open(root / name, "w:gz" if name.endswith("gz") else "w") as file:
        for member, data in FILES.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return root / name


def parquet(root: Path) -> Path:
    rows = {"image": [{"bytes": data, "path": ""} for data in FILES.values()], "label": [i % 2 for i in range(NUM)]}
    pq.write_table(pa.table(rows), root / "x.parquet", row_group_size=7)
    return root / "x.parquet"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path / "set")


def streamed(source: Path, config: DataConfig = ANY, workers: int = 0) -> ImageSet:
    data = open_source(source, config, memory=0, workers=workers)
    assert isinstance(data.images, Streamed)
    return data


@pytest.fixture
def pair(root: Path) -> Iterator[tuple[Feed, Feed]]:
    """The same feed in memory, and decoded by two processes."""
    with Feed(open_source(root, MOVED), 16, MOVED, 5) as held, Feed(streamed(root, MOVED, workers=2), 16, MOVED, 5) as flowing:
        yield held, flowing


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def same(held: Feed, flowing: Feed, draws: list[int]) -> bool:
    batches = [(held.batch(d), flowing.batch(d)) for d in draws]
    return all(torch.equal(a.x, b.x) and torch.equal(a.cond.label, b.cond.label) and torch.equal(a.index, b.index) for a, b in batches)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_those_of_a_set_in_memory_whatever_the_number_of_workers(root: Path, workers: int) -> None:
    with Feed(open_source(root, MOVED), 16, MOVED, 5) as held, Feed(streamed(root, MOVED, workers), 16, MOVED, 5) as flowing:
        assert same(held, flowing, [0, 1, 2, 3, 4, 5, 6])  # over the ends of epochs
        assert same(held, flowing, [100, 101, 7, 8, 10, 12, 11, 11, 0])  # after a resume, with gaps, and back
        assert flowing.waited > 0


@pytest.mark.parametrize("build", [folder, zipped, tarred, lambda root: tarred(root, "x.tgz"), parquet], ids=["folder", "zip", "tar", "tgz", "parquet"])
@pytest.mark.parametrize("config", [ANY, DataConfig(channels=1), DataConfig(multiple=5, at_least=20), MOVED], ids=["any", "grey", "multiple", "moved"])
def test_every_source_is_streamed_as_it_is_loaded(build: Callable[[Path], Path], config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    source = build(tmp_path / "it")
    held, flowing = open_source(source, config), streamed(source, config)
    assert flowing.images.shape == held.images.shape
    assert torch.equal(torch.cat(list(flowing.parts(17))), held.images)
    assert [len(part) for part in flowing.parts(17)] == [17, 17, 17, 3]
    assert torch.equal(flowing.images_of(torch.tensor([3, 1, 3])), held.images[[3, 1, 3]])
    assert torch.equal(flowing.take(torch.arange(40, 50)).images, held.images[40:50])
    assert torch.equal(flowing.labels, held.labels)
    assert (flowing.classes, flowing.info, flowing.name) == (held.classes, held.info, held.name)
    passes = [Feed(data, 16, config, 0).passes(20) for data in (held, flowing)]
    assert all(torch.equal(a.x, b.x) for a, b in zip(*passes, strict=True))


@pytest.mark.parametrize("build", [zipped, tarred, parquet], ids=["zip", "tar", "parquet"])
def test_processes_read_archives_and_copies_of_parquet(build: Callable[[Path], Path], tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    source = build(tmp_path / "it")
    with Feed(open_source(source), 16, ANY, 5) as held, Feed(streamed(source, ANY, workers=1), 16, ANY, 5) as flowing:
        assert same(held, flowing, [0, 1, 50])


def test_parts_of_a_draw_make_it_up_and_are_guessed_by_part(pair: tuple[Feed, Feed]) -> None:
    held, flowing = pair
    flowing.batch(0)
    while any(flowing.ahead.open.values()):
        flowing.ahead._listen()
    assert set(flowing.ahead.places) == {Key(d) for d in range(ahead.DRAWS)}  # the next draws are ready
    for draw in (0, 1, 2, 9):
        for parts, mine in ((4, (1, 3)), (4, (0, 2)), (2, (0, 1)), (1, (0,))):
            for part in mine:
                expected = held.batch(draw).x[part * 16 // parts : (part + 1) * 16 // parts]
                assert torch.equal(flowing.batch(draw, part, parts).x, expected)
    flowing.batch(20, 1, 4)
    flowing.batch(20, 3, 4)
    assert set(flowing.ahead.places) >= {Key(d, p, 4) for d in (21, 22, 23) for p in (1, 3)}


def test_a_worker_that_dies_is_replaced_and_its_work_done_again(pair: tuple[Feed, Feed]) -> None:
    held, flowing = pair
    assert same(held, flowing, [0])
    for num, signum in ((1, signal.SIGSEGV), (2, signal.SIGKILL)):  # one of them, then both
        old = [worker.process.pid for worker in flowing.ahead.workers]
        for pid in old[:num]:
            os.kill(pid, signum)
        assert same(held, flowing, [3 * num, 3 * num + 1, 100 * num])
        assert sum(worker.process.pid in old for worker in flowing.ahead.workers) == 2 - num


def test_workers_leave_signals_to_the_parent_and_end_with_the_feed(pair: tuple[Feed, Feed], monkeypatch: pytest.MonkeyPatch) -> None:
    held, flowing = pair
    assert same(held, flowing, [0])
    old = [worker.process.pid for worker in flowing.ahead.workers]
    for pid in old:
        assert os.getsid(pid) != os.getsid(0)  # Ctrl-C on the terminal does not reach them
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    assert same(held, flowing, [1, 2, 60])
    assert [worker.process.pid for worker in flowing.ahead.workers] == old
    replace = flowing.ahead._replace

    def patiently(worker: object) -> None:
        monkeypatch.setattr(ahead, "STUCK", 300.0)  # the next one has to begin first
        replace(worker)

    monkeypatch.setattr(flowing.ahead, "_replace", patiently)
    monkeypatch.setattr(ahead, "STUCK", 0.5)
    os.kill(old[0], signal.SIGSTOP)  # one that hangs is replaced
    assert same(held, flowing, [80])
    new = [worker.process.pid for worker in flowing.ahead.workers]
    assert not alive(old[0]) and old[0] not in new
    flowing.close()
    assert not any(map(alive, new))


def test_a_task_that_kills_every_worker_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned = "import os, sys; os._exit(9)"
    monkeypatch.setattr(ahead, "CODE", poisoned)
    with Feed(streamed(root, workers=2), 8, ANY, 0) as feed, pytest.raises(UserError, match=r"died 3 times at one task \(status 9; .*\.png.*--workers") as caught:
        feed.batch(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_after_the_listing_is_one_line_when_it_is_met(root: Path, workers: int) -> None:
    data = streamed(root, workers=workers)
    (root / "b" / "001.png").write_bytes(b"no image")
    with Feed(data, len(data), ANY, 0) as feed, pytest.raises(UserError, match=r"b/001\.png is not a PNG"):
        feed.batch(0)


def test_skip_bad_of_a_streamed_set_leaves_out_the_same(root: Path) -> None:
    for name in ("a/000.png", "b/001.png", "b/059.png"):
        (root / name).write_bytes(b"no image")
    lines: list[list[str]] = [[], []]
    held, flowing = open_source(root, bad=lines[0]), open_source(root, bad=lines[1], memory=0)
    assert lines[0] == lines[1] and len(lines[0]) == 2  # 059 is of the test split
    assert flowing.skipped == held.skipped
    assert torch.equal(flowing.images[:], held.images)
    assert torch.equal(flowing.labels, held.labels)


def test_sizes_and_colors_are_told_before_training(tmp_path: Path) -> None:
    grey = tmp_path / "grey"
    grey.mkdir()
    for i in range(9):
        Image.new("L", (8, 6), i).save(grey / f"{i}.png")
    assert tuple(streamed(grey).info.shape) == (1, 6, 8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (6, 8), 9).save(grey / "9.jpg", exif=turned)  # upright 8 x 6
    assert tuple(streamed(grey).info.shape) == (1, 6, 8)
    assert torch.equal(streamed(grey).images[:], open_source(grey).images)
    Image.new("RGB", (8, 6)).save(grey / "8.png")
    for config in (ANY, DataConfig(resolution=4)):
        assert streamed(grey, config).info.shape.channels == open_source(grey, config).info.shape.channels == 3
    Image.new("RGB", (8, 7)).save(grey / "7.png")
    with pytest.raises(UserError, match=r"0\.png is 8x6 but .*7\.png is 8x7: pass --data\.resolution"):
        open_source(grey, memory=0)


def test_memory_decides(root: Path) -> None:
    num = 54 * 3 * 16 * 16
    assert isinstance(open_source(root, memory=num).images, torch.Tensor)
    assert isinstance(open_source(root, memory=num - 1).images, Streamed)
    assert open_source(root, memory=0).digest() == open_source(root, memory=0).listing == open_source(root).listing
    assert [size(text) for text in ("4G", "500M", "1.5k", "10", "2GiB")] == [4 * 2**30, 500 * 2**20, 1536, 10, 2**31]
    with pytest.raises(argparse.ArgumentTypeError, match="write 4G or 500M"):
        size("much")


def test_a_copy_of_parquet_is_made_once_and_again_where_it_is_stale_or_cut(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = parquet(tmp_path)
    expected = open_source(source).images
    assert torch.equal(streamed(source).images[:], expected)
    (made,) = (cache / "packs").glob("*.pack")
    facts = made.stat()
    assert torch.equal(streamed(source).images[:], expected)
    assert made.stat() == facts
    made.write_bytes(made.read_bytes()[:-5])
    assert torch.equal(streamed(source).images[:], expected)
    os.utime(source, ns=(0, 0))
    assert torch.equal(streamed(source).images[:], expected)
    assert len(list((cache / "packs").glob("*.pack"))) == 2
    assert len(list((cache / "packs").iterdir())) == 4
    shutil.rmtree(cache)
    monkeypatch.setattr(pack.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match="has no room for a copy .* set PIXELKILN_CACHE to a folder with"):
        streamed(source)


def children(pid: int) -> list[int]:
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


def begun(command: list[str], out: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A training process that has logged a step, and its workers."""
    process = subprocess.Popen([sys.executable, "-m", "pixelkiln", *command], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (out / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process, children(process.pid)


def test_a_signal_to_all_processes_loses_nothing_and_training_goes_on_bit_for_bit(root: Path, tmp_path: Path,
                                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "vae-mlp", "--data", str(root), "--size", "tiny", "--steps", "150", "--train.batch", "16", "--train.log_every", "2",
               "--precision", "fp32", "--quiet"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    process, workers = begun([*command, "--out", str(out), "--memory", "0", "--workers", "2"], out)
    assert len(workers) == 2
    for pid in (*workers, process.pid):
        os.kill(pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    step = Run(out).checkpoint().step
    assert 0 < step < 150
    assert f"stopped at step {step} of 150, all saved" in said
    assert not any(map(alive, workers))
    assert main([*command, "--out", str(whole)]) == 0
    assert main(["train", "--out", str(out), "--resume", "--memory", "0", "--workers", "1", "--precision", "fp32", "--quiet"]) == 0
    a, b = (Run(path).checkpoint().tensors("weights") for path in (whole, out))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(0 <= r["idle"] <= 1 for r in Run(out).records() if r["step"])
    facts = [json.loads((path / "recipe.json").read_text())["data"] for path in (whole, out)]
    assert [f["streamed"] for f in facts] == [False, True]
    assert facts[0]["listing"] == facts[1]["listing"] == facts[1]["digest"] != facts[0]["digest"]
    assert (out / "report.html").exists()  # its panels look at the images, too
    again = ["train", "--out", str(out), "--resume", "--quiet"]
    assert main(again) == 0  # in memory: the same images
    (root / "a" / "000.png").write_bytes(FILES["a/002.png"] + b"x")
    assert main([*again, "--memory", "0"]) == 2
    assert "has changed since" in capsys.readouterr().err


def test_workers_end_with_a_parent_that_is_killed(root: Path) -> None:
    program = f"""if True:
        import time
        from pixelkiln.core.recipe import DataConfig
        from pixelkiln.data import Feed, open_source
        feed = Feed(open_source({str(root)!r}, memory=0, workers=2), 16, DataConfig(), 0)
        feed.batch(0)
        print(*(worker.process.pid for worker in feed.ahead.workers), flush=True)
        time.sleep(600)"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(map(alive, workers))


def test_sizes_that_differ_within_what_a_process_decodes(root: Path) -> None:
    data = streamed(root)
    Image.new("RGB", (16, 17)).save(root / "a" / "000.png")
    with pytest.raises(UserError, match=r"a/000\.png comes out as 16x17 and other images as 16x16: pass --data\.resolution"):
        stream.decode_like(data.images.items[:1], data.images.config, data.images.shape[1:])
