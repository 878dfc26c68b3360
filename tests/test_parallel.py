"""Several processes: the same steps as one, whatever the rows; one ends, all end; a run goes on in another number of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import parallel_worker
from pixelkiln.cli.main import main
from pixelkiln.core.runs import Run
from pixelkiln.data import open_source
from pixelkiln.engine.where import Where

HERE = Path(__file__).parent
TOYS = str(HERE / "parallel_toys.py")
ONE = Where("cpu", "fp32", False, 1)


def started(*args: object, num: int = 2) -> subprocess.Popen[str]:
    """torchrun with `num` processes of one thread, in a session of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num), *map(str, args)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


def torchrun(*args: object, num: int = 2) -> tuple[int, list[str], str]:
    """Exit status, our own lines of the error stream, all of it."""
    process = started(*args, num=num)
    _, err = process.communicate(timeout=120)
    return process.returncode, ours(err), err


def ours(err: str) -> list[str]:
    """What pixelkiln itself said (torchrun says more)."""
    return [line for line in err.splitlines() if line.startswith("pixelkiln: ")]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found: see parallel_worker.py."""
    out = tmp_path_factory.mktemp("worker")
    status, _, err = torchrun(HERE / "parallel_worker.py", out)
    assert status == 0, err
    return out


@pytest.mark.parametrize("name", list(parallel_worker.CASES))
def test_two_processes_take_the_steps_that_one_takes(worker: Path, name: str) -> None:
    """Two rows, a resting row with double backward, a gradient penalty, clipping, averages, BatchNorm, buffers, parameters that some parts do
    not reach; moving averages of codes, whitening, spectral norms, ADA's probability, bins of losses, Muon's momentum. With two parts even bit
    for bit: a + b = b + a. With more the order of sums differs."""
    losses, held = parallel_worker.case(name, ONE)
    theirs, tensors = json.loads((worker / f"{name}.json").read_text()), load_file(worker / f"{name}.safetensors")
    assert len(theirs) >= parallel_worker.FEW
    for k, (a, b) in enumerate(zip(losses, theirs, strict=True)):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-7), f"step {k}"
    assert held.keys() == tensors.keys()
    exact = parallel_worker.CASES[name][1] == 2
    for key, value in held.items():
        if exact:
            assert torch.equal(value, tensors[key]), key
        else:
            torch.testing.assert_close(value, tensors[key], rtol=1e-4, atol=2e-5 if value.is_floating_point() else 1, msg=key)


def test_a_closed_form_is_that_of_one_process(worker: Path, tmp_path: Path) -> None:
    assert main(["train", "pca", "--data", "digits", "--size", "tiny", "--out", str(tmp_path / "pca"), "--quiet"]) == 0
    same(tmp_path / "pca", worker / "pca")


def test_steps_are_those_of_distributed_data_parallel(worker: Path) -> None:
    tensors = load_file(worker / "ddp.safetensors")
    pairs = [(v, tensors["ours" + key.removeprefix("ddp")]) for key, v in tensors.items() if key.startswith("ddp/")]
    assert len(pairs) == 4
    for ddp, mine in pairs:
        torch.testing.assert_close(mine, ddp, rtol=1e-5, atol=1e-7)


def test_processes_agree_sum_and_notice_what_differs(worker: Path) -> None:
    first, second = (json.loads((worker / f"facts-{r}.json").read_text()) for r in (0, 1))
    assert first.pop("deal") == [0, 2, 4]
    assert second.pop("deal") == [1, 3]
    assert first.pop("did") == [0, 2, 4], "each process does its own works"
    assert second.pop("did") == [1, 3]
    assert first.pop("handed") == [[[n], [float(n)] * n] for n in range(5)], "process 0 gets all of them, in their order"
    assert second.pop("handed") == []
    assert first == second
    assert first["agreed"] == {"rank": 0, "text": "ä"}
    assert first["most"] == [1, 0]
    assert first["sums"] == [[3.0, 6.0], [1, 3, 5], 0.5]
    assert first["spread"] == {"a": ["torch.int64", []], "b": ["torch.bool", [2, 1]], "c": ["torch.float32", [0, 3]], "d": ["torch.float32", [2, 3, 2, 2]]}
    assert first["nan"] == "Diverged at 6: d/loss is nan at step 6", "a loss that is nan in one process stops both at that step"
    assert first["drift"].startswith("Apart at 6: d.count is no longer the same")


def test_parts_are_equal_pieces_of_the_batch() -> None:
    """Rows, labels and augmentation of the parts, put together, are those of the batch."""
    from pixelkiln.core.recipe import DataConfig
    from pixelkiln.data import Feed, open_source

    feed = Feed(open_source("digits"), 24, DataConfig(flip=True, translate=2), 5)
    whole = feed.batch(3)
    for parts in (2, 3, 8):
        pieces = [feed.batch(3, i, parts) for i in range(parts)]
        assert torch.equal(torch.cat([p.x for p in pieces]), whole.x)
        assert torch.equal(torch.cat([p.index for p in pieces]), whole.index)
        assert torch.equal(torch.cat([p.cond.label for p in pieces]), whole.cond.label)


def train(out: Path, *more: object) -> list[object]:
    return ["-m", "pixelkiln", "train", f"{TOYS}:pair", "--data", "digits", "--out", out, "--precision", "fp32", "--quiet", *more]


def losses(out: Path) -> dict[int, dict[str, float]]:
    """Logged terms by step, without times."""
    return {r["step"]: {k: v for k, v in r.items() if k not in ("step", "seconds", "images_per_s", "idle")} for r in Run(out).records()}


def wait_for(what: Any, process: subprocess.Popen[str], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    assert main([str(a) for a in train(out)[2:]]) == 0
    return out


def same(a: Path, b: Path) -> None:
    """Two runs have the same losses and, of two parts, the same weights bit for bit."""
    assert losses(a) == losses(b)
    weights, others = Run(a).checkpoint().tensors("weights"), Run(b).checkpoint().tensors("weights")
    assert all(torch.equal(v, others[k]) for k, v in weights.items())


def test_one_is_killed_the_other_says_so_and_the_run_goes_on_alone_or_together(tmp_path: Path, unbroken: Path) -> None:
    """SIGKILL in one of two processes; SIGTERM to the launcher after resuming; then one process ends the run, as if nothing had been."""
    out = tmp_path / "r"
    process = started(*train(out, "--train.save_every", 4, "--model.pause", 0.05))
    wait_for(lambda: (out / "checkpoints" / "step-00000008").exists(), process)
    victim = next(p for p in children(process.pid) if "RANK=1" in Path(f"/proc/{p}/environ").read_text().split("\0"))
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30, "seconds, not a collective's timeout (about 5 on a quiet machine)"
    (line,) = ours(err)
    assert line.startswith("pixelkiln: training stopped: process 1 of 2 (on ")
    assert line.endswith("died without a word (killed, or its machine failed); go on with --resume")
    at = Run(out).checkpoint().step
    assert 8 <= at < 40
    process = started("-m", "pixelkiln", "train", f"{TOYS}:pair", "--resume", "--out", out)
    wait_for(lambda: max(losses(out)) >= at + 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    (line,) = ours(err)
    stopped = Run(out).checkpoint().step
    assert line == f"pixelkiln: stopped at step {stopped} of 40, all saved; go on with --resume"
    assert at < stopped < 40
    assert max(losses(out)) == stopped, "both stopped at the same step, and nothing was done after it"
    assert main(["train", f"{TOYS}:pair", "--resume", "--out", str(out), "--quiet"]) == 0
    same(out, unbroken)


def test_both_change_the_plan_when_process_0_does(tmp_path: Path) -> None:
    """A budget of 400 seconds by a clock of each process's own; process 1's says that the plan is right."""
    toy = f"{HERE / 'hurried_toy.py'}:hurried"
    status, _, err = torchrun("-m", "pixelkiln", "train", toy, "--data", "digits", "--size", "tiny", "--budget", "400s", "--out", tmp_path / "r", "--precision", "fp32")
    assert status == 0, err
    run = Run(tmp_path / "r")
    facts = run.read_recipe()
    assert facts["total"] == facts["plan"]["again"][-1]["total"] == run.checkpoint().step > 1.5 * 400 / 7.2
    assert "steps take another time than was planned with" in err and err.count("steps take another time") == len(facts["plan"]["again"])


def digits_as_files(folder: Path) -> Path:
    """The digits as PNGs, in their order, with their labels and splits."""
    rows = []
    for split in ("train", "test"):
        data = open_source("digits", split=split)
        assert data.labels is not None
        (folder / split).mkdir(parents=True)
        for i, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
            Image.fromarray(image[0].numpy()).save(folder / split / f"{i:05}.png")
            rows.append({"file_name": f"{split}/{i:05}.png", "label": label})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_streamed_run_begun_alone_goes_on_in_two_but_not_in_three_and_ends_alone_in_memory(tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of the run that had all images in memory. Of two processes one alone gets SIGTERM, and both stop after the same step."""
    from pixelkiln.engine import session

    out, steps, source = tmp_path / "r", iter(range(100)), digits_as_files(tmp_path / "digits")
    streamed, step = ("--memory", 1, "--workers", 0), session.Trainer.step
    begin = [str(source) if a == "digits" else str(a) for a in train(out, *streamed, "--model.pause", 0.05)[2:]]
    with monkeypatch.context() as patch:
        patch.setattr(session.Trainer, "step", lambda self, k: os.kill(os.getpid(), signal.SIGTERM) or step(self, k) if next(steps) == 9 else step(self, k))
        assert main(begin) == 143
    assert Run(out).checkpoint().step == 10
    go_on = ("-m", "pixelkiln", "train", f"{TOYS}:pair", "--resume", "--out", out, "--quiet")
    status, lines, err = torchrun(*go_on, *streamed, num=3)
    assert lines == [f"pixelkiln: {out} was begun with 2 parts a step, which 3 processes cannot share: go on with 1, 2"]
    assert status == 1, "torchrun's own"
    assert err.count("exitcode  : 2") == 3, "ours"
    assert Run(out).checkpoint().step == 10
    process = started(*go_on, *streamed)
    wait_for(lambda: max(losses(out)) >= 13, process, 110)
    os.kill(next(p for p in children(process.pid) if "RANK=1" in Path(f"/proc/{p}/environ").read_text().split("\0")), signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    stopped = Run(out).checkpoint().step
    assert ours(err) == [f"pixelkiln: stopped at step {stopped} of 40, all saved; go on with --resume"]
    assert 13 <= stopped == max(losses(out)) < 40
    assert main([str(a) for a in go_on[2:]]) == 0
    same(out, unbroken)


def test_two_processes_go_back_from_a_collapse_as_one(tmp_path: Path) -> None:
    """Both see it, both go back to the checkpoint that one of them wrote, and draw the random numbers of the second try."""
    words = ("--data", "digits", "--watch", "rollback", "--precision", "fp32", "--quiet", "--out")
    collapsing = ("train", f"{HERE / 'toys.py'}:collapsing")
    status, lines, err = torchrun("-m", "pixelkiln", *collapsing, *words, tmp_path / "two")
    assert (status, lines) == (0, []), err
    assert main([*collapsing, "--train.accumulate", "2", *words, str(tmp_path / "one")]) == 0
    records = Run(tmp_path / "two").records()
    assert [r for r in records if "rollback" in r] == [{"step": 100, "rollback": 50, "lr_factor": 0.5}]
    assert Run(tmp_path / "two").checkpoint().state["watch"] == Run(tmp_path / "one").checkpoint().state["watch"]
    same(tmp_path / "one", tmp_path / "two")


def test_a_mistake_in_one_process_ends_all_with_its_reason(tmp_path: Path) -> None:
    status, lines, err = torchrun(*train(tmp_path / "r", "--model.wrong", "raise"))
    assert status == 1
    assert len(lines) == 1
    assert "process 1 of 2" in lines[0]
    assert "KeyError: 'a mistake in one process'" in lines[0]
    assert err.count('raise KeyError("a mistake in one process")') == 1, "with its traceback, once"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder, so that the extractor is trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELKILN_CACHE", str(folder := tmp_path_factory.mktemp("cache")))
        yield folder


def scores(tmp_path: Path, cache: Path, *args: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `evaluate` finds in one process and in two, each of which looks at the real images anew."""
    found = []
    for name, processes in (("one", 1), ("two", 2)):
        for file in cache.rglob("statistics-*"):
            file.unlink()
        command = ["evaluate", *args, "--json", tmp_path / f"{name}.json", "--quiet"]
        if processes == 1:
            assert main([str(a) for a in command]) == 0
        else:
            status, lines, err = torchrun("-m", "pixelkiln", *command)
            assert (status, lines) == (0, []), err
        assert list(cache.rglob("statistics-*")), "the statistics of the real images were made anew"
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    return found[0], found[1]


def test_two_processes_score_images_as_one(tmp_path: Path, cache: Path) -> None:
    """All kinds of scores, bit for bit, of 600 images in three parts."""
    data = open_source("digits", split="train")
    noise = torch.randint(0, 60, data.images[:600].shape, generator=torch.Generator().manual_seed(0))
    images = (data.images[:600].int() + noise).clamp(max=255).to(torch.uint8)
    np.savez(tmp_path / "f.npz", images=images[:, 0].numpy(), labels=data.labels[:600].numpy())
    names = "fd,kd,precision,recall,density,coverage,accuracy,mind,authenticity,nn-ratio,vendi,cs,modes-kl,purity,label-nats"
    one, two = scores(tmp_path, cache, tmp_path / "f.npz", "--data", "digits", "--metrics", names, "--bootstrap", 4)
    assert one == two
    assert {m["name"] for m in one["metrics"]} == set(names.split(","))
    assert all(m["floor"] is not None for m in one["metrics"])


def test_two_processes_score_reconstructions_as_one(tmp_path: Path, cache: Path) -> None:
    assert main(["train", "pca", "--data", "digits", "--out", str(tmp_path / "r"), "--size", "tiny", "--quiet"]) == 0
    one, two = scores(tmp_path, cache, tmp_path / "r", "-n", 300, "--precision", "fp32", "--metrics", "psnr,pd,fd")
    assert one == two
    assert {m["protocol"]["N"] for m in one["metrics"]} == {len(open_source("digits", split="test").images[:300]), 300}


def test_three_processes_make_the_parts_a_multiple_and_sample_and_score_as_one(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "r"
    status, lines, err = torchrun(*train(out, "--steps", 3), num=3)
    assert (status, lines) == (0, []), err
    facts = Run(out).read_recipe()
    assert facts["stages"][0]["train"]["accumulate"] == 6, "the least multiple of 2 and 3"
    assert facts["where"]["processes"] == 3
    sample = ["sample", out, "-n", 10, "--batch", 3, "--seed", 4, "--precision", "fp32", "--recipe", f"{TOYS}:pair", "--quiet"]
    assert main([str(a) for a in [*sample, "--out", tmp_path / "one.npz"]]) == 0
    status, lines, err = torchrun("-m", "pixelkiln", *sample, "--out", tmp_path / "two.npz")
    assert (status, lines) == (0, []), err
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert np.array_equal(one["images"], two["images"])
    one, two = scores(tmp_path, cache, out, "-n", 600, "--precision", "fp32", "--recipe", f"{TOYS}:pair", "--metrics", "fd,kd,precision,recall")
    assert one == two


def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path) -> None:
    _, lines, err = torchrun("-m", "pixelkiln", "train", "ddmp", "--data", "digits", "--out", tmp_path / "r")
    assert len(lines) == 1
    assert "did you mean ddpm" in lines[0]
    assert err.count("exitcode  : 2") == 2
