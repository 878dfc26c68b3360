"""Nothing lost: the fault harness in a short version, the lock of a run folder, a disk that is really full, caches shared by processes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from faults import KINDS, STREAMED, Harness, Subject, commands
from pixelkiln.core import files
from pixelkiln.core.catalog import builtin, find
from pixelkiln.core.files import Unwritable, locked, read_json, write_bytes, write_json
from pixelkiln.core.runs import Run
from pixelkiln.core.types import UserError
from pixelkiln.engine import session
from pixelkiln.engine.log import Log
from pixelkiln.engine.train import Budget, Order, train
from pixelkiln.engine.where import Where

HERE = Path(__file__).parent
WEIGHTS = {"weights": {"w": torch.arange(1000.0)}}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_short_run_of_the_harness(tmp_path: Path) -> None:
    """Some seconds of `make fault`: no fault changes what a run ends with, and each sabotage is noticed."""
    out = tmp_path / "f.json"
    done = subprocess.run([sys.executable, HERE / "faults.py", "--seconds", "8", "--only", "vae-mlp", "pca", "--out", out], capture_output=True, text=True,
                          env=ONE_THREAD)
    found = json.loads(out.read_text())
    assert found["failures"] == []
    assert all(said.startswith("noticed") for said in found["controls"].values())
    assert len(found["controls"]) == 4
    assert found["faults"] >= 5
    assert done.returncode == 0


def test_the_harness_gives_every_recipe_parents_that_fit_and_are_made_before(tmp_path: Path) -> None:
    made: list[str] = []
    for subject in commands(tmp_path):
        if subject.name in builtin():
            recipe = find(subject.name)("tiny")
            given = dict(word.split("=") for option, word in itertools.pairwise(subject.args) if option == "--parent")
            assert given.keys() == {role for role, stage in recipe.last.parents.items() if not stage and role in recipe.last.method.roles}, subject.name
            for role, path in given.items():
                assert Path(path).name in made, f"{subject.name}: {path} is not made yet"
                assert issubclass(find(Path(path).name)("tiny").last.method, recipe.last.method.roles[role]), f"{subject.name}: {path} is no {role}"
        made.append(subject.name)
    assert {*builtin(), STREAMED, "two_stage"} == {*made}


def test_faults_go_round_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN and the clock for every recipe that trains, then as many trials of each recipe, of all its kinds."""
    names = ("a", "b", "still", STREAMED)
    for name in names:
        for file in ("metrics.jsonl", "checkpoints/step-00000006/weights.safetensors"):
            write_bytes(tmp_path / name / file, b"")
    subjects = [Subject(name, (), tmp_path / name, calls=5, saves=(0,) if name == "still" else (0, 2, 4, 6)) for name in names]
    seen: list[tuple[str, str]] = []
    for trial in ("nan", "clock", "workers", "signals", "point", "damage"):
        def noted(self: Harness, subject: Subject, *case: Any, trial: str = trial) -> None:
            kinds = {"workers": "worker", "damage": "recipe.json" if "recipe.json" in case else "damage"}
            seen.append((subject.name, case[0] if trial in ("signals", "point") else kinds.get(trial, trial)))

        monkeypatch.setattr(Harness, trial, noted)
    for trial in itertools.islice(Harness(tmp_path, 0).turns(subjects), 7 + 4 * len(KINDS)):
        trial()
    assert seen[:7] == [("a", "nan"), ("b", "nan"), (STREAMED, "nan"), ("a", "clock"), ("b", "clock"), (STREAMED, "clock"), (STREAMED, "worker")]
    assert [name for name, _ in seen[7:]] == [*names] * len(KINDS)
    assert {kind for name, kind in seen if name == STREAMED} == {*KINDS}
    assert {kind for name, kind in seen if name == "a"} == {*KINDS} - {"worker"}
    assert {kind for name, kind in seen if name == "still"} == {*KINDS} - {"worker", "nan"}
    assert len({kind for _, kind in seen[7:11]}) >= 3, "neighbors are at different kinds"


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of this size; skips where none can be mounted."""
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_is_really_full_leaves_the_older_checkpoint_and_says_how_much_is_needed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        run = Run(disk / "run")
        run.save(1, {"weights": {"w": torch.arange(100_000.0)}}, {"seen": []})
        with pytest.raises(Unwritable, match=r"step-00000002: no space left on device: 0\.8 MB are needed and 0\.\d MB are free: make room"):
            run.save(2, {"weights": {"w": torch.arange(200_000.0)}}, {"seen": []})
        assert run.checkpoint().step == 1
        assert [p.name for p in (disk / "run" / "checkpoints").iterdir()] == ["step-00000001"], "what was begun takes no room"
        run.save(2, {"weights": {"w": torch.arange(50_000.0)}}, {"seen": []})
        assert run.checkpoint().step == 2


def test_training_on_a_full_disk_ends_in_one_line_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    order = Order("vae-mlp", "digits", tmp_path / "disk" / "run", "tiny", Budget(steps=3),
                  changes={"train.save_every": "1", "train.sample_every": "9", "train.batch": "16"})
    here, quiet = Where("cpu", "fp32", False, torch.get_num_threads()), Log(quiet=True)
    whole = train(Order("vae-mlp", "digits", tmp_path / "whole", "tiny", order.budget, changes=order.changes), here, log=quiet).checkpoint()
    size = sum(f.stat().st_size for f in whole.path.iterdir())
    with small_disk(tmp_path / "disk", str(size * 7 // 4)) as disk:  # room for one checkpoint, not for two
        with pytest.raises(Unwritable, match="MB are needed"):
            train(order, here, log=quiet)
        assert Run(order.out).checkpoint().step == 1
        subprocess.run(["mount", "-o", f"remount,size={10 * size}", disk], check=True)
        end = train(order, here, resume=True, log=quiet).checkpoint()
        assert all(torch.equal(v, whole.tensors("weights")[k]) for k, v in end.tensors("weights").items())


def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        run = Run(disk / "run")
        run.save(1, WEIGHTS, {"seen": []})
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for write in (lambda: run.save(2, WEIGHTS, {"seen": []}), lambda: write_json(disk / "a.json", 1), lambda: run.append({"step": 1}),
                      lambda: run.hold().__enter__()):
            with pytest.raises(Unwritable, match="may not be written .*read-only.*choose another place"):
                write()
        assert run.checkpoint().step == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENOTDIR])
def test_what_the_disk_refuses_is_named_with_a_remedy(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(UserError, match=r"b(\b| ).*(permissions|check the disk)") as caught:
        write_bytes(tmp_path / "b", b"x")
    assert caught.value.errno == code  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def trainer(out: Path, *more: str, steps: int = 100_000) -> subprocess.Popen[str]:
    """A training in a process of its own."""
    command = [sys.executable, "-m", "pixelkiln", "train", "vae-mlp", "--data", "digits", "--out", str(out), "--size", "tiny", "--steps", str(steps),
               "--train.batch", "8", "--train.save_every", "20", "--train.sample_every", "100000", "--precision", "fp32", "--quiet", *more]
    return subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)


def test_two_trainings_of_one_folder_exclude_each_other_and_readers_do_not_wait(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with trainer(out) as first:
        while first.poll() is None and not Run(out).points():
            time.sleep(0.01)
        with trainer(out, "--resume") as second:
            said = second.communicate()[1]
        assert second.returncode == 2
        assert f"{out} is being written by process {first.pid} on " in said
        assert said.count("\n") == 1
        for _ in range(20):  # while checkpoints come and go
            from pixelkiln.engine.build import load_method

            load_method(out)
            assert isinstance(Run(out).records(), list)
        first.send_signal(signal.SIGKILL)
    assert (out / ".lock").exists(), "a killed process cannot tidy up"
    with trainer(out, "--resume") as third:  # the kernel has let go of the lock
        while third.poll() is None and (out / ".lock").read_text().split()[1:2] != [str(third.pid)]:
            time.sleep(0.01)
        time.sleep(0.2)
        third.send_signal(signal.SIGTERM)
        assert third.wait() in (143, -15), third.communicate()


def test_a_lock_leaves_nothing_behind_and_a_mistake_leaves_no_folder(tmp_path: Path) -> None:
    run = Run(tmp_path / "a" / "b" / "run")
    with run.hold():
        assert (run.path / ".lock").exists()
        with pytest.raises(UserError, match="being written by process"), Run(run.path).hold():
            pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="nothing here"), run.hold():
        raise UserError("nothing here")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    said: list[str] = []
    monkeypatch.setattr(fcntl, "flock", none)
    with Run(tmp_path / "run").hold(said.append):
        assert (tmp_path / "run").exists()
    assert len(said) == 1
    assert "has no locks" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_training_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1, WEIGHTS, {"seen": []})
    for left in (".recipe.json.12ab34cd.tmp", "samples/.step-00000003.png.00000000.tmp", "checkpoints/.step-00000002.77.tmp/weights.safetensors",
                 "checkpoints/.old-step-00000001/state.json"):
        (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / left).write_bytes(b"x")
    with run.hold():
        pass
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_dir() or p.name.startswith(".")) == [
        "checkpoints", "checkpoints/step-00000001", "samples"]


def test_waiting_for_a_lock_ends_when_its_holder_dies(tmp_path: Path) -> None:
    """A chain of processes that each want it: no two have it at once, though each removes the file."""
    code = ("import sys, time, os; from pathlib import Path; from pixelkiln.core.files import locked\n"
            "for _ in range(20):\n"
            "    with locked(Path(sys.argv[1]), wait=True):\n"
            "        fd = os.open(sys.argv[2], os.O_CREAT | os.O_EXCL); time.sleep(0.002); os.close(fd); os.unlink(sys.argv[2])\n")
    crowd = [subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock", tmp_path / "alone"], env=ONE_THREAD) for _ in range(3)]
    assert [p.wait() for p in crowd] == [0, 0, 0]
    with locked(tmp_path / "lock") as why:
        assert why is None


def test_two_processes_train_one_feature_extractor_once(tmp_path: Path) -> None:
    code = ("from pathlib import Path; import sys; from pixelkiln.data import open_source; from pixelkiln.engine.features import *\n"
            "said = []\n"
            "e = extractor_for(open_source('digits'), cache_dir=Path(sys.argv[1]), log=said.append, config=ExtractorConfig(images=2000, width=4))\n"
            "print(e.weights, len(said) > 0)\n")
    pair = [subprocess.Popen([sys.executable, "-c", code, tmp_path], env=ONE_THREAD, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(p.communicate()[0].split()[1] for p in pair)
    assert said == ["False", "True"]
    assert not list(tmp_path.rglob(".*"))


def test_newer_wrecks_never_cost_a_good_checkpoint(tmp_path: Path) -> None:
    """Two damaged ones with higher numbers: what is saved meanwhile stays, they go."""
    run = Run(tmp_path)
    for step in (1, 70, 80):
        run.save(step, WEIGHTS, {"seen": []}, keep=3)
    for step in (70, 80):
        (tmp_path / "checkpoints" / f"step-{step:08d}" / "state.json").write_text("{")
    run.save(2, WEIGHTS, {"seen": []})
    assert [p.name for p in run.points()] == ["step-00000001", "step-00000002"]
    assert run.checkpoint().step == 2


def test_steps_above_eight_digits_are_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (99_999_999, 100_000_000):
        run.save(step, WEIGHTS, {"seen": []})
    assert run.checkpoint().step == 100_000_000


def test_a_file_that_the_manifest_does_not_name_is_not_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path)
    path = run.save(1, WEIGHTS, {"seen": []})
    (path / "optim.safetensors").write_bytes((path / "weights.safetensors").read_bytes())
    assert "'optim.safetensors' is not in its manifest" in str(run.verify(path))
    (path / "optim.safetensors").unlink()
    (path / "manifest.json").write_text(json.dumps(read_json(path / "manifest.json") | {"../../../secret": {"bytes": 1, "sha256": ""}}))
    assert "'../../../secret' is missing" in str(run.verify(path))


def test_checkpoints_every_five_minutes_whatever_the_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval is counted by a clock that cannot be set: with an interval of nothing every step is saved, with time standing still as well."""
    saved: list[int] = []
    save = Run.save
    monkeypatch.setattr(Run, "save", lambda self, step, *a: (saved.append(step), save(self, step, *a))[1])
    monkeypatch.setattr(session, "MINUTES", -1.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    train(Order("vae-mlp", "digits", tmp_path / "r", "tiny", Budget(steps=3), changes={"train.batch": "8"}), Where("cpu", "fp32", False, 1), log=Log(True))
    assert saved == [1, 2, 3]
