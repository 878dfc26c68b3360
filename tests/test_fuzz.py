"""Whatever is in the files and words that we read: a result, or one line that says what is wrong."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pixelkiln.cli.main import main
from pixelkiln.cli.options import seconds, whole
from pixelkiln.core.catalog import builtin, find, overridable, override
from pixelkiln.core.runs import Run
from pixelkiln.core.types import UserError
from pixelkiln.engine.build import load_method
from pixelkiln.engine.publish import evaluation_of
from pixelkiln.engine.sample import labels_for

FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=150, suppress_health_check=list(HealthCheck))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.sampled_from([10**400, -1, 0, 1, 2**31, 2**63]), st.floats(), st.text(max_size=20))
JSON = st.recursive(LEAVES, lambda part: st.one_of(st.lists(part, max_size=4), st.dictionaries(st.text(max_size=8), part, max_size=4)), max_leaves=8)
WORD = st.one_of(st.text(max_size=30), st.from_regex(r"-?[0-9]{1,30}(\.[0-9]*)?(e-?[0-9]{1,4})?[smhdkM]?", fullmatch=True), st.sampled_from(
    ["nan", "inf", "-inf", "1e999", "9" * 5000, "9" * 400, "none", "true", "1,2", ",", "()", "[1,2", "0x10", "1_0", "\udcff", "٣", "½", "²", "-0", "-1"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small run that was evaluated, and no more than 2 GB of memory for what is read into it."""
    out = tmp_path_factory.mktemp("fuzz") / "run"
    args = ["train", "vae-mlp", "--data", "digits", "--out", str(out), "--size", "tiny", "--steps", "2", "--precision", "fp32", "--quiet"]
    assert main(args) == 0
    result = {"name": "fd", "value": 1.5, "better": "lower", "floor": None, "protocol": {"seed": 0}, "error": None}
    (out / "evaluation.json").write_text(json.dumps({"metrics": [result, result | {"floor": 0.5, "error": 0.1}], "warnings": ["w"]}))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, hard))
    yield out
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def paths(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON tree."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, part in parts:
        yield (*prefix, key)
        yield from paths(part, (*prefix, key))


def changed(tree: Any, data: st.DataObject) -> str:
    """The tree with some places replaced or removed, as JSON text."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(list(paths(tree)) or [()])) or (None,)
        part = tree
        for key in path:
            part = part[key]
        if last is not None and data.draw(st.booleans()):
            part[last] = data.draw(JSON)
        elif last is not None:
            del part[last]
    return json.dumps(tree)


def fine(error: UserError) -> None:
    """An error is one line of reasonable length."""
    assert "\n" not in str(error)
    assert 0 < len(str(error)) < 900


@pytest.mark.parametrize("name", ["recipe.json", "evaluation.json", "checkpoints/step-00000002/state.json", "checkpoints/step-00000002/manifest.json"])
def test_json_of_a_run_with_anything_in_it(run: Path, name: str) -> None:
    file = run / name
    kept = file.read_text()
    outcomes = set()

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file.write_text(changed(json.loads(kept), data))
        try:
            evaluation_of(Run(run)) if name == "evaluation.json" else load_method(run)
            outcomes.add("read")
        except UserError as e:
            fine(e)
            outcomes.add("refused")

    try:
        check()
    finally:
        file.write_text(kept)
    assert outcomes >= ({"refused"} if "checkpoints" in name else {"read", "refused"})


def test_an_evaluation_that_is_accepted_can_be_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "evaluation.json"
    kept = file.read_text()

    @settings(FUZZ, max_examples=25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file.write_text(changed(json.loads(kept), data))
        assert main(["show", str(run)]) in (0, 2)

    try:
        check()
    finally:
        file.write_text(kept)


@FUZZ
@given(st.lists(st.one_of(st.binary(max_size=40), JSON.map(lambda v: json.dumps({"step": v, "loss": v}).encode()), JSON.map(lambda v: json.dumps(v).encode())), max_size=8))
def test_a_log_with_anything_in_it(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    run = Run(tmp_path_factory.mktemp("log"))
    run.metrics_file.write_bytes(b"\n".join([*lines, b'{"step": 2, "loss": 0.5}', b'{"step": 3']))
    found = run.records()
    assert {"step": 2, "loss": 0.5} in found
    assert all(isinstance(r["step"], int) and all(math.isfinite(v) for v in r.values()) for r in found)
    run.rewind(2**62)
    assert run.records() == found
    run.append({"step": 4})
    assert run.records()[-1] == {"step": 4}


@pytest.mark.parametrize("name", sorted(builtin()))
def test_overrides_of_any_kind(name: str) -> None:
    recipe = find(name)("tiny")
    options = [option for option, _ in overridable(recipe)]

    @FUZZ
    @given(st.sampled_from(options), WORD)
    def check(option: str, text: str) -> None:
        try:
            override(recipe, {option: text})
        except UserError as e:
            fine(e)
            assert option in str(e)

    check()


@FUZZ
@given(WORD)
@example("9" * 400)
@example("1e999")
@example("inf")
def test_times_and_whole_numbers(text: str) -> None:
    for read in (seconds, whole):
        try:
            assert 0 < read(text) < math.inf
        except (argparse.ArgumentTypeError, ValueError) as e:  # argparse turns both into a line
            fine(UserError(str(e)))


@FUZZ
@given(WORD)
@example("all")
@example("a,9")
@example("")
@example(",")
def test_labels(text: str) -> None:
    classes = [*"0123456789", "a", "a,b"]
    try:
        found = labels_for(text, classes, [1] * 12, [1, 2, 3])
        assert found.dtype == torch.int64
        assert found.shape == (3,)
        assert bool(((found >= 0) & (found < 12)).all())
    except UserError as e:
        fine(e)


@settings(FUZZ, max_examples=120)
@given(st.sampled_from(["list", "show", "sample", "evaluate", "interpolate", "traverse", "arithmetic", "reconstruct", "embed", "train", ""]), st.lists(st.one_of(
    WORD, st.sampled_from(["--out", "--data", "--label", "--json", "-n", "--seed", "--budget", "--size", "--family", "--steps", "--help", "nowhere"])), max_size=5))
def test_command_lines(verb: str, words: list[str]) -> None:
    """Nothing that is typed before there is a run or data ends otherwise than in 0 or 2."""
    try:
        status = main([verb, *words])
    except SystemExit as e:
        status = int(e.code or 0)
    assert status in (0, 2)


def test_mutants_of_every_file_that_is_read() -> None:
    """See mutants.py: each kind survives, and the mutants are neither all harmless nor all hopeless."""
    child = subprocess.run([sys.executable, Path(__file__).with_name("mutants.py"), "--examples", "40"], capture_output=True, text=True,
                           env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert child.returncode == 0, child.stderr[-3000:]
    report = json.loads(child.stdout)
    counts = report["kinds"]
    assert len(counts) >= 21
    assert report["failed"] == 0
    assert report["files"] == sum(sum(found.values()) for found in counts.values())
    assert all(sum(found.values()) >= 30 for found in counts.values())
    assert all(found["refused"] for kind, found in counts.items() if kind not in ("metrics.jsonl", "manifest.json"))
    assert sum(found["read"] for found in counts.values()) > 100
