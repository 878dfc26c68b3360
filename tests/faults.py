"""Breaks trainings in every way that we know of, resumes them, and compares all that they left with a run that nobody touched, bit for bit.

    python tests/faults.py --seconds 600 --out benchmarks/results/2026-11-24-faults.json        (`make fault`)

Each trial is a process of its own: a fork of this one, which has imported everything and has one thread only. In it the calls that change the
disk are counted, and the n-th one is where the process is killed, or where the disk fails. Kinds of faults:

    kill      SIGKILL before call n                      torn      half of what call n writes, then SIGKILL (others: SIGKILL after the call)
    full      from call n on: no space left              readonly  from call n on: read-only file system        error  call n alone: I/O error
    SIGKILL, SIGTERM, SIGINT, twice SIGINT               at a random time           worker  SIGKILL to a process that decodes images, one to four times
    damage    the newest checkpoint or the log is torn, flipped, deleted, ...       nan   a weight, a gradient or a loss        clock   jumps by years

Every recipe has its own shuffled list of each kind; they take turns, a trial each, and in every turn the next kind: see `Harness.turns`.
Controls are sabotaged on purpose; if one of them is not noticed, these tests show nothing, and say so.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import io
import itertools
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # no thread may have begun when we fork

import sklearn.datasets
import torch
from PIL import Image

import pixelkiln.engine.features
import pixelkiln.engine.loop
import pixelkiln.engine.publish
import pixelkiln.engine.where
from pixelkiln.cli.main import main, verb_module
from pixelkiln.core import files, runs
from pixelkiln.core.catalog import builtin, find, overridable
from pixelkiln.core.protocols import Classifier, Codec, Denoiser, Latent, Tokenizer
from pixelkiln.core.runs import Run
from pixelkiln.data import open_source
from pixelkiln.engine import loop

LIMIT = 600.0  # seconds of one trial; more is a hang, even where others use the processor
DISK = ("kill", "torn", "full", "readonly", "error")
SIGNALS: dict[str, tuple[int, ...]] = {"SIGKILL": (signal.SIGKILL,), "SIGTERM": (signal.SIGTERM,), "SIGINT": (signal.SIGINT,), "twice SIGINT": (signal.SIGINT, signal.SIGINT)}
KINDS = ("kill", "damage", "SIGKILL", "full", "recipe.json", "SIGTERM", "torn", "worker", "SIGINT", "readonly", "nan", "twice SIGINT", "error", "clock")
TOYS = f"{Path(__file__).with_name('toys.py')}:two_stage"
STREAMED = "streamed"
PARENTS: dict[type, str] = {Denoiser: "ddpm", Latent: "dcgan", Classifier: "classifier", Tokenizer: "vqvae", Codec: "vae"}  # what a role asks for -> the recipe that it gets
Hook = Callable[[], None]


@dataclass(frozen=True)
class Subject:
    """One training command, what it leaves when nobody touches it, how long it takes, and its number of calls that change the disk."""

    name: str
    args: tuple[str, ...]
    reference: Path
    parents: tuple[str, ...] = ()
    seconds: float = 0.0
    calls: int = 0
    saves: tuple[int, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether it makes steps; others save once, at step 0."""
        return self.saves != (0,)


@dataclass
class End:
    """How a process ended: exit status (negative: by that signal), what it said, and the steps of its finished checkpoints."""

    status: int
    said: str
    saved: list[int] = field(default_factory=list)
    calls: int = 0


class Failing:
    """The calls that change the disk, counted, and at call `at` the fault."""

    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at, self.count = kind, at, 0
        self.real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "mkdir", "unlink", "rmdir", "write", "ftruncate")}
        self.open = builtins.open

    def install(self) -> None:
        for name, real in self.real.items():
            if name == "open":
                setattr(os, name, lambda path, flags, *a, real=real, **k: self.call("create", real, path, flags, *a, **k) if flags & os.O_CREAT
                        else real(path, flags, *a, **k))
            else:
                setattr(os, name, lambda *a, name=name, real=real, **k: self.call(name, real, *a, **k))
        builtins.open = self.opened  # type: ignore[assignment]

    def opened(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+") or str(file) == os.devnull:
            return self.open(file, mode, *args, **kwargs)
        return Written(self, self.call("create", self.open, file, mode, *args, **kwargs))

    def call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == "ftruncate" and os.readlink(f"/proc/self/fd/{args[0]}").startswith("/memfd:"):
            return real(*args, **kwargs)  # memory, and no disk
        self.count += 1
        if self.count == self.at and self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        grows = name in ("create", "write", "mkdir", "fsync")
        if (self.count >= self.at and (self.kind == "readonly" or (self.kind == "full" and grows))) or (self.count == self.at and self.kind == "error"):
            code = {"full": errno.ENOSPC, "readonly": errno.EROFS, "error": errno.EIO}[self.kind]
            raise OSError(code, os.strerror(code), *[a for a in args[:1] if isinstance(a, (str, Path))])
        if self.count == self.at and self.kind == "torn" and name == "write" and len(args[-1]) > 1:
            real(*args[:-1], args[-1][: len(args[-1]) // 2])
            if not args[:-1]:
                real.__self__.flush()  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*args, **kwargs)
        if self.count == self.at and self.kind == "torn":
            os.kill(os.getpid(), signal.SIGKILL)
        return found


class Written:
    """A file whose writes are counted."""

    def __init__(self, disk: Failing, file: Any) -> None:
        self.disk, self.file = disk, file

    def write(self, data: Any) -> Any:
        return self.disk.call("write", self.file.write, data)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def spawn(args: tuple[str, ...], base: Path, fault: tuple[str, int] = ("none", 0), hook: Hook | None = None, send: Callable[[int], None] | None = None) -> End:
    """Run the command line in a fork, with a disk that fails and anything else that `hook` does; `send` may signal it meanwhile."""
    out, (read, write) = base / f"said-{random.getrandbits(40)}", os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # until the child is where it can end
    pid = os.fork()
    if pid == 0:
        leave(lambda: inside(args, out, write, fault, hook))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    os.close(write)
    if send is not None:
        send(pid)
    status = ended(pid)
    with os.fdopen(read) as notes:
        words = [w.split() for w in notes.read().splitlines()]
    said = out.read_text(errors="replace") if out.exists() else ""
    out.unlink(missing_ok=True)
    return End(status, said, [int(w[1]) for w in words if w[0] == "saved"], max([int(w[1]) for w in words if w[0] == "calls"], default=0))


def leave(work: Callable[[], int]) -> NoReturn:
    """Work, and end this process with its status, whatever is raised and whatever signals come."""
    status = 99
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        status = work()
    except KeyboardInterrupt:
        status = 130
    finally:
        try:  # a second SIGINT may come here
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        finally:
            os._exit(status)


def inside(args: tuple[str, ...], out: Path, notes: int, fault: tuple[str, int], hook: Hook | None) -> int:
    """The forked process: redirect what is said, tell of every finished checkpoint, fail as ordered."""
    fd = os.open(out, os.O_CREAT | os.O_WRONLY)
    os.dup2(fd, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), line_buffering=True) for n in (1, 2))
    note, save = os.write, Run.save

    def told(self: Run, step: int, *a: Any, **k: Any) -> Path:
        path = save(self, step, *a, **k)
        if self.path.parent.name != "stages":
            note(notes, f"saved {step}\n".encode())
        return path

    Run.save = told  # type: ignore[method-assign]
    disk = Failing(*fault)
    if hook is not None:
        hook()
    disk.install()
    try:
        return main(list(args))
    except SystemExit as e:
        return int(e.code or 0)
    except Exception:
        import traceback

        sys.stderr.write(traceback.format_exc())
        return 98
    finally:
        note(notes, f"calls {disk.count}\n".encode())


def ended(pid: int) -> int:
    """Exit status of a process; one that hangs is killed and counts as -1000."""
    stop = time.monotonic() + LIMIT
    while time.monotonic() < stop:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -1000


def commands(base: Path) -> Iterator[Subject]:
    """Every recipe of the catalog, and one of two stages, as a short training of the embedded digits, parents first; and `vae-mlp` on images that are streamed."""
    alone = {name: not any(stage == "" for stage in find(name)("tiny").last.parents.values()) for name in [*builtin(), TOYS]}
    shown = {name: name.rpartition(":")[2] for name in sorted(alone, key=lambda name: not alone[name])}
    for name, short in [*shown.items(), ("vae-mlp", STREAMED)]:
        recipe = find(name)("tiny")
        data = [str(base / "png"), "--memory", "1", "--workers", "1"] if short == STREAMED else ["digits"]
        args = ["train", name, "--data", *data, "--size", "tiny", "--steps", "6", "--precision", "fp32", "--quiet"]
        wanted = {"train.batch": "16", "train.save_every": "2", "train.log_every": "1", "train.sample_every": "3"}
        for option, _ in overridable(recipe):
            if (tail := option.split(".", 1)[1] if len(recipe.stages) > 1 else option) in wanted:
                args += [f"--{option}", wanted[tail]]
        protocols = recipe.last.method.roles  # a role that it does not have: a parent that it can do without
        parents = {role: PARENTS[protocols[role]] for role, stage in recipe.last.parents.items() if not stage and role in protocols}
        for role, parent in parents.items():
            args += ["--parent", f"{role}={base / parent}"]
        yield Subject(short, tuple(args), base / short, tuple(parents.values()))


def pictures(folder: Path) -> None:
    """Digits as PNG files, in a folder for each class."""
    digits = sklearn.datasets.load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images[:96], digits.target[:96], strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).save(folder / str(label) / f"{i:02d}.png")


def untouched(subject: Subject, base: Path) -> Subject:
    """The subject with its reference made, timed, and its calls counted."""
    with contextlib.redirect_stdout(io.StringIO()):
        main([*subject.args, "--steps", "2", "--out", str(base / "imports" / subject.name)])  # here, for what it imports
    begin = time.monotonic()
    end = spawn((*subject.args, "--out", str(subject.reference)), base)
    assert end.status == 0, f"{subject.name} fails by itself: {end.said}"
    seconds = time.monotonic() - begin
    sys.stderr.write(f"{subject.name}: {seconds:.1f} s, {end.calls} calls, checkpoints {end.saved}\n")
    return replace(subject, seconds=seconds, calls=end.calls, saves=tuple(end.saved))


def different(subject: Subject, out: Path, grids: bool = True) -> str | None:
    """What a resumed run left otherwise than the untouched one: tensors, log, grids, names of files; None if nothing."""
    try:
        mine, other = Run(out).checkpoint(), Run(subject.reference).checkpoint()
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    if mine.step != other.step:
        return f"ends at step {mine.step} instead of {other.step}"
    for group in ("weights", "average", "optim"):
        a, b = mine.tensors(group), other.tensors(group)
        if a.keys() != b.keys() or any(not torch.equal(a[k], b[k]) for k in a):
            return f"{group} differ"
    whole = [p for p in Run(out).points()[:-1] if Run(out).verify(p) is None]  # where the fault fell on their removal
    names = [{str(p.relative_to(base)) for p in base.rglob("*") if not {p, p.parent} & {*whole}} for base in (out, subject.reference)]
    names[1] -= {n for n in names[1] if n.startswith("checkpoints/") and f"/{mine.path.name}" not in n}
    names = [part - {"metrics.jsonl"} for part in names]  # which is compared below
    if not grids:
        names = [{n for n in part if "samples/" not in n} for part in names]
    if names[0] != names[1]:
        return f"files differ: {sorted(names[0] ^ names[1])[:4]}"
    if grids and any(p.read_bytes() != (subject.reference / "samples" / p.name).read_bytes() for p in Run(out).samples()):
        return "a grid differs"
    log = unclocked(subject.reference)
    if unclocked(out) != log or (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_bytes().count(b"\n") != len(log):
        return "the log differs"
    return None


def unclocked(out: Path) -> list[dict[str, Any]]:
    """The log without times."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s", "idle")} for r in Run(out).records()]


class Harness:
    """Trials, and what came of them."""

    def __init__(self, base: Path, seed: int) -> None:
        self.base, self.rng, self.seed = base, random.Random(seed), seed
        self.counts: dict[str, Counter[str]] = {}
        self.failures: list[dict[str, Any]] = []
        self.controls: dict[str, str] = {}
        self.sizes: Counter[str] = Counter()
        self.whole: dict[str, Path] = {}
        self.number = 0

    def place(self) -> Path:
        """A fresh folder's name."""
        self.number += 1
        return self.base / f"trial-{self.number}"

    def note(self, subject: Subject, kind: str, wrong: str | None, **facts: Any) -> None:
        """Count one fault, and keep what went wrong."""
        self.counts.setdefault(subject.name, Counter())[kind] += 1
        if wrong:
            self.failures.append({"recipe": subject.name, "kind": kind, "wrong": wrong[:500], **facts})
            sys.stderr.write(f"  FAILED {subject.name} {kind} {facts}: {wrong[:500]}\n")

    def resumed(self, subject: Subject, out: Path, hook: Hook | None = None, grids: bool = True) -> str | None:
        """Resume without faults; what is wrong with the result."""
        end = spawn((*subject.args, "--out", str(out), "--resume"), self.base, hook=hook)
        return f"resuming ends with {end.status}: {end.said}" if end.status else different(subject, out, grids)

    def disk(self, subject: Subject, kind: str, at: int, hook: Hook | None = None, out: Path | None = None) -> str | None:
        """Fault at call `at`, then resume. The older checkpoint must be there, an error one line, and the end as if nothing had been."""
        out = out or self.place()
        end = spawn((*subject.args, "--out", str(out)), self.base, (kind, at), hook)
        wrong, lines = None, end.said.strip().splitlines()
        if kind in ("kill", "torn") and end.status not in (-9, 0):
            wrong = f"not killed but {end.status}: {end.said}"
        if kind in ("full", "readonly", "error") and not (end.status == 0 or (end.status == 2 and len(lines) == 1 and lines[0].startswith("pixelkiln: "))):
            wrong = f"status {end.status}: {end.said}"
        if kind == "full" and end.status == 2 and "MB are needed" not in end.said:
            wrong = f"does not say how much is needed: {end.said}"
        held = Run(out).last_good()[0]
        if end.saved and (held is None or held.step < max(end.saved)):
            wrong = f"the checkpoint of step {max(end.saved)} is lost"
        wrong = wrong or self.resumed(subject, out, hook, grids=kind in ("kill", "torn"))
        shutil.rmtree(out, ignore_errors=True)
        return wrong

    def signals(self, subject: Subject, kind: str) -> None:
        """A signal at a random time, up to three times on one run, then left alone."""
        out = self.place()
        for _ in range(self.rng.randint(1, 3)):
            waits = [self.rng.uniform(0, 1.1 * subject.seconds), self.rng.uniform(0, 0.05)]

            def send(pid: int, waits: list[float] = waits) -> None:
                for signum, wait in zip(SIGNALS[kind], waits, strict=False):
                    time.sleep(wait)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signum)

            end = spawn((*subject.args, "--out", str(out), "--resume"), self.base, send=send)
            if end.status == 0:
                break
            bad = end.status not in (-9, -15, 130, 143) or "Traceback" in end.said
            self.note(subject, kind, f"status {end.status}: {end.said}" if bad else None)
        wrong = self.resumed(subject, out)
        if wrong:
            self.note(subject, kind, wrong)
        shutil.rmtree(out, ignore_errors=True)

    def stopped(self, subject: Subject) -> Path:
        """A run that was killed when it had logged a step after its last checkpoint but one (or, without steps, after its checkpoint)."""
        out, last = self.place(), subject.saves[-2] if len(subject.saves) > 1 else subject.saves[-1]
        end = spawn((*subject.args, "--out", str(out)), self.base, hook=lambda: killed_after(last))
        assert end.status == -9, f"{subject.name} was to be killed at step {last}: {end.status} {end.said}"
        return out

    def workers(self, subject: Subject) -> None:
        """Kill processes that decode, at random times; each is replaced, and the end as if nothing had been, but for the third death at one task: one line."""
        out, killed, logged = self.place(), list[int](), self.rng.choice((0, 0, 1, 2, 3, 4))  # lines of the log before the first; 0: at any time
        waits = [self.rng.uniform(0, 0.05 if logged else subject.seconds), *[self.rng.uniform(0, 1.5) for _ in range(self.rng.randint(0, 3))]]

        def send(pid: int) -> None:
            stop = time.monotonic() + LIMIT
            while logged and len(Run(out).records()) < logged and time.monotonic() < stop and alive(pid):
                time.sleep(0.003)
            for wait in waits:
                time.sleep(wait)
                while not (fresh := [p for p in children(pid) if p not in killed]) and time.monotonic() < stop and alive(pid):
                    time.sleep(0.003)
                for worker in fresh:
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)

        end = spawn((*subject.args, "--out", str(out)), self.base, send=send)
        lines = end.said.strip().splitlines()
        if end.status == 2 and len(killed) >= 3 and len(lines) == 1 and "died 3 times at one task" in end.said:
            wrong = self.resumed(subject, out)
        else:
            wrong = f"status {end.status} after {len(killed)} deaths: {end.said}" if end.status else different(subject, out)
        for n in range(len(killed)):
            self.note(subject, "worker", wrong if n == 0 else None, deaths=len(killed))
        shutil.rmtree(out, ignore_errors=True)

    def piles(self, subject: Subject) -> dict[str, Iterator[Hook]]:
        """Trials of each kind, in an order of its own: calls that change the disk; files of the newest checkpoint, log and recipe.json; NaN; the clock; signals."""
        newest = f"checkpoints/{Run(subject.reference).points()[-1].name}"
        stem = f"checkpoints/step-{subject.saves[-2] if len(subject.saves) > 1 else subject.saves[-1]:08d}"
        names = [(f"{stem}/{f.name}", how) for f in sorted((subject.reference / newest).iterdir()) for how in HARM]
        names += [("metrics.jsonl", how) for how in LOGS] * (subject.reference / "metrics.jsonl").exists()
        names += [(stem, how) for how in TREES if how != "wreck" or subject.trains]  # a complete run saves no more, and clears none
        facts = [("recipe.json", how) for how in ("half", "empty", "first bit", "middle bit", "{}", "null")]
        finite: dict[str, list[Hook]] = {
            "nan": [partial(self.nan, subject, what) for what in ("weight", "gradient", "loss") if subject.trains], "clock": [partial(self.clock, subject)],
            **{kind: [partial(self.point, subject, kind, at) for at in range(1, subject.calls + 1)] for kind in DISK},
            "damage": [partial(self.damage, subject, *case) for case in names], "recipe.json": [partial(self.damage, subject, *case) for case in facts],
        }
        self.sizes += Counter({"disk": len(DISK) * subject.calls, "other": sum(len(pile) for kind, pile in finite.items() if kind not in DISK)})
        for pile in finite.values():
            self.rng.shuffle(pile)
        endless: dict[str, Hook] = {kind: partial(self.signals, subject, kind) for kind in SIGNALS}
        if subject.name == STREAMED:
            endless["worker"] = partial(self.workers, subject)
        return {kind: iter(pile) for kind, pile in finite.items()} | {kind: itertools.repeat(trial) for kind, trial in endless.items()}

    def turns(self, subjects: list[Subject]) -> Iterator[Hook]:
        """Trials, so that whenever the time is over all recipes have had as many and each as many kinds as can be.

        First NaN and the clock for every recipe that trains. Then every turn has one trial of each recipe, its kind the next one; neighbors are at different kinds.
        """
        piles = {s.name: self.piles(s) for s in subjects}
        self.counts |= {s.name: Counter() for s in subjects}
        for kind in ("nan", "clock", "worker"):
            yield from [next(piles[s.name][kind]) for s in subjects if kind in piles[s.name] and s.trains]
        for turn in itertools.count():
            for i, s in enumerate(subjects):
                mine = piles[s.name]
                kinds = [k for k in KINDS if k in mine]
                trials = (next(mine[kinds[(turn + i + more) % len(kinds)]], None) for more in range(len(kinds)))  # the next kind where one is used up
                yield next(t for t in trials if t is not None)

    def point(self, subject: Subject, kind: str, at: int) -> None:
        """The disk fails at one call."""
        self.note(subject, kind, self.disk(subject, kind, at), at=at)

    def damage(self, subject: Subject, name: str, how: str) -> None:
        """Damage one file of a stopped run, resume. A broken recipe.json must be refused in one line that names it."""
        if subject.name not in self.whole:
            self.whole[subject.name] = self.stopped(subject)
        out = self.place()
        shutil.copytree(self.whole[subject.name], out, symlinks=True)
        (LOGS if name == "metrics.jsonl" else TREES if (out / name).is_dir() else HARM)[how](out / name)
        end = spawn((*subject.args, "--out", str(out), "--resume"), self.base)
        lines = end.said.strip().splitlines()
        if name == "recipe.json" and end.status:
            fine = end.status == 2 and len(lines) == 1 and ("recipe.json" in end.said or "pixelkiln: " in end.said)
            shutil.copy(self.whole[subject.name] / "recipe.json", out)
            wrong = self.resumed(subject, out) if fine else f"status {end.status}: {end.said}"
        else:
            wrong = f"resuming ends with {end.status}: {end.said}" if end.status else different(subject, out)
        if wrong == "the log differs" and name == "metrics.jsonl":  # what somebody else has cut off is gone; the rest must be right
            wrong = None if all(r in unclocked(subject.reference) for r in unclocked(out)) else wrong
        self.note(subject, "recipe.json" if name == "recipe.json" else "damage", wrong, file=name, how=how)
        shutil.rmtree(out)

    def nan(self, subject: Subject, what: str) -> None:
        """A weight, a gradient, a loss that is not a number in the third step: status 1, one line, the last checkpoint finite, the end as if nothing had been."""
        out = self.place()
        end = spawn((*subject.args, "--out", str(out)), self.base, hook=lambda: poisoned(what, 2))
        lines, stages = end.said.strip().splitlines(), sorted((out / "stages").glob("*"))
        held = next((point for path in (out, *stages) if (point := Run(path).last_good()[0]) is not None), None)  # of two stages it is the first that breaks
        wrong = None if end.status == 1 and len(lines) == 1 and "last good checkpoint" in end.said else f"status {end.status}: {end.said}"
        if held is None or not all(bool(torch.isfinite(v).all()) for v in held.tensors("weights").values() if v.is_floating_point()):
            wrong = wrong or "no finite checkpoint is left"
        self.note(subject, "nan", wrong or self.resumed(subject, out), what=what)
        shutil.rmtree(out)

    def clock(self, subject: Subject) -> None:
        """A wall clock that jumps by years, in both directions, at every look."""
        out = self.place()
        end = spawn((*subject.args, "--out", str(out)), self.base, hook=jumping)
        spent = [r["seconds"] for r in Run(out).records() if "seconds" in r]
        wrong = f"status {end.status}: {end.said}" if end.status else different(subject, out)
        if not wrong and (spent != sorted(spent) or any(s < 0 or s > LIMIT for s in spent)):
            wrong = f"seconds: {spent}"
        self.note(subject, "clock", wrong)
        shutil.rmtree(out)

    def control(self, subject: Subject) -> None:
        """Sabotage that the comparison has to notice."""
        for name, sabotage in CONTROLS.items():
            out = self.stopped(subject)
            if name == "hashes are not checked":
                HARM["last bit"](Run(out).points()[-1] / "weights.safetensors")
            if name == "files are written in place":
                shutil.rmtree(out)
                wrong = next((w for at in range(5, 10) if (w := self.disk(subject, "torn", at, sabotage))), None)
            else:
                wrong = self.resumed(subject, out, sabotage)
            self.controls[name] = f"noticed: {wrong.strip()[:120]}" if wrong else "NOT NOTICED"
            shutil.rmtree(out, ignore_errors=True)

    def report(self, begin: float) -> dict[str, Any]:
        """What was done, in numbers."""
        total: Counter[str] = sum(self.counts.values(), Counter())
        return {
            "date": time.strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - begin), "seed": self.seed, "processor": pixelkiln.engine.where.processor(),
            "python": platform.python_version(), "torch": torch.__version__, "faults": sum(total.values()), "by kind": dict(sorted(total.items())),
            "by recipe": {name: dict(sorted(c.items())) for name, c in self.counts.items()}, "disk points in all": self.sizes["disk"], "other cases in all": self.sizes["other"],
            "controls": self.controls, "failures": self.failures,
        }


def alive(pid: int) -> bool:
    """Whether this child has not ended; it is not waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            found += [int(path.parent.name)] * (int(parent) == pid and state != "Z")
    return found


def killed_after(step: int) -> None:
    """Die when a step after this one is logged, or when its checkpoint is finished if it is step 0."""
    save, append = Run.save, Run.append

    def saved(self: Run, at: int, *a: Any, **k: Any) -> Path:
        path = save(self, at, *a, **k)
        if at == step == 0 and self.path.parent.name != "stages":
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    def logged(self: Run, record: Any) -> None:
        append(self, record)
        if record["step"] > step and self.path.parent.name != "stages":
            os.kill(os.getpid(), signal.SIGKILL)

    Run.save, Run.append = saved, logged  # type: ignore[method-assign]


def poisoned(what: str, at: int) -> None:
    """Put a NaN into step `at`."""
    step = loop.Trainer.step

    def bad(self: loop.Trainer, k: int) -> None:
        parameter = self.owned[self.rows[0].opt][0]
        if k == at and what == "weight":
            parameter.data[(0,) * parameter.ndim] = float("nan")
        if k == at and what == "gradient":
            parameter.register_hook(lambda g: g * float("nan"))
        if k == at and what == "loss":
            row = self.rows[0]
            self.rows[0] = replace(row, loss=lambda batch, moment: {n: v * float("nan") for n, v in row.loss(batch, moment).items()})
        step(self, k)

    loop.Trainer.step = bad  # type: ignore[method-assign]


def jumping() -> None:
    """A wall clock without sense."""
    rng, real = random.Random(0), time.time
    time.time = lambda: real() + rng.uniform(-1e9, 1e9)
    time.time_ns = lambda: int(1e9 * time.time())


def in_place(path: Path, data: bytes) -> None:
    """How files are not to be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        f.write(data)


def bit(at: Callable[[int], int]) -> Callable[[Path], None]:
    """Flip one bit of the byte at a place that depends on the length."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at(len(data))] ^= 4
        path.write_bytes(data)

    return flip


def cut(length: Callable[[int], int]) -> Callable[[Path], None]:
    """Cut a file to a length that depends on the length."""
    return lambda path: os.truncate(path, length(path.stat().st_size))


def tail(data: bytes) -> Callable[[Path], None]:
    """Add bytes at the end."""

    def add(path: Path) -> None:
        path.write_bytes(path.read_bytes() + data)

    return add


def folder(path: Path) -> None:
    """A folder where a file was."""
    path.unlink()
    path.mkdir()


def linked(path: Path) -> None:
    """A link to the same content elsewhere in the run."""
    moved = path.parent.parent.parent / f".{path.name}.elsewhere"
    path.rename(moved)
    path.symlink_to(moved)


def wreck(path: Path) -> None:
    """Two newer ones beside it, both damaged."""
    for number in (70, 80):
        shutil.copytree(path, path.with_name(f"step-{number:08d}"))


def twice(path: Path) -> None:
    """Each line two times."""
    path.write_bytes(b"".join(2 * line for line in path.read_bytes().splitlines(keepends=True)))


def plain(path: Path) -> None:
    """A file where the folder was."""
    shutil.rmtree(path)
    path.write_bytes(b"x")


HARM: dict[str, Callable[[Path], None]] = {
    "first bit": bit(lambda n: 0), "header bit": bit(lambda n: min(9, n - 1)), "middle bit": bit(lambda n: n // 2), "last bit": bit(lambda n: n - 1),
    "empty": cut(lambda n: 0), "half": cut(lambda n: n // 2), "a byte short": cut(lambda n: n - 1), "a byte long": tail(b"\0"),
    "gone": Path.unlink, "folder": folder, "{}": lambda path: in_place(path, b"{}"), "null": lambda path: in_place(path, b"null"),
}
TREES: dict[str, Callable[[Path], None]] = {"file": plain, "gone": shutil.rmtree, "wreck": wreck}
LOGS: dict[str, Callable[[Path], None]] = {
    "mid-line": cut(lambda n: n - 5), "empty": cut(lambda n: 0), "gone": Path.unlink, "mid-character": tail('{"step": 9, "é'.encode()[:-1]), "twice": twice,
    "binary": tail(bytes(range(256))), "nan": tail(b'{"step": 1, "loss": NaN}\n'), "number": tail(b"17\n"), "deep": tail(b"[" * 100_000 + b"\n"),
    "digits": tail(b'{"step": ' + b"9" * 5000 + b"}\n"),
}
CONTROLS: dict[str, Hook] = {
    "moments are not restored": lambda: setattr(loop, "unpack", lambda opts, tensors: None),
    "hashes are not checked": lambda: setattr(Run, "verify", lambda self, path: None),
    "the log is not rewound": lambda: setattr(Run, "rewind", lambda self, *a: None),
    "files are written in place": lambda: [setattr(m, "write_bytes", in_place) for m in (files, runs)] and None,
}


def everything(seconds: float, seed: int, only: list[str] | None = None, out: Path | None = None) -> dict[str, Any]:
    """All kinds of faults over all recipes, in turn, for about so long, after references and controls; what was done so far is in `out` after every minute."""
    torch.set_num_threads(1)
    begin = time.monotonic()
    memory = "/dev/shm"  # fsync costs nothing there
    with tempfile.TemporaryDirectory(prefix="faults-", dir=memory if os.access(memory, os.W_OK) else None) as name:
        base = Path(name)
        os.environ["PIXELKILN_CACHE"] = str(base / "cache")
        sklearn.datasets.load_digits = cache(sklearn.datasets.load_digits)
        open_source("digits")
        verb_module("train")
        pictures(base / "png")
        every = list(commands(base))
        wanted = {s.name for s in every if only is None or s.name in only}
        made = [untouched(s, base) for s in every if s.name in wanted | {parent for other in every if other.name in wanted for parent in other.parents}]
        subjects = [s for s in made if s.name in wanted]
        harness = Harness(base, seed)
        harness.control(next(s for s in subjects if len(s.saves) > 1))
        start = kept = time.monotonic()
        for trial in harness.turns(subjects):
            trial()
            if out and time.monotonic() - kept > 60:
                files.write_json(out, harness.report(begin))
                kept = time.monotonic()
            if time.monotonic() - start > seconds and sum(map(len, harness.counts.values())) >= 5:
                break
        return harness.report(begin)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="of faults, after the references and the controls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of recipes")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found = everything(asked.seconds, asked.seed, asked.only, asked.out)
    text = json.dumps(found, indent=1)
    if asked.out:
        asked.out.write_text(text + "\n")
    sys.stderr.write(f"{found['faults']} faults, {len(found['failures'])} failures, {found['controls']}\n")
    sys.exit(bool(found["failures"]) or any("NOT" in said for said in found["controls"].values()))
