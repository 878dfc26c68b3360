"""Where a run happens: the race and what follows from its times, its keeping, overrides, what a run records, what a resumed one keeps."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pixelkiln.core.cache import recall
from pixelkiln.core.types import UserError
from pixelkiln.engine import race as racing
from pixelkiln.engine.log import Log
from pixelkiln.engine.race import Entry, fewer_threads, processor, race, times
from pixelkiln.engine.train import Budget, Order, train
from pixelkiln.engine.where import Where, _check_compiler
from pixelkiln.layers.spectral import spectral

CPU = torch.device("cpu")
QUIET = Log(quiet=True)
ALL = [Entry(p, q, 1) for p in ("fp32", "bf16") for q in ("channels-last", "contiguous")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def threads() -> int:
    """torch's number of threads; put back afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def pretend(monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[str, str], float], by_threads: dict[int, float] | None = None) -> list[Sequence[Entry]]:
    """A machine on which the race would end like this; the list of races that were run."""
    ran: list[Sequence[Entry]] = []

    def run(device: torch.device, entries: Sequence[Entry], *_: object) -> dict[Entry, float]:
        ran.append(entries)
        return {e: (by_threads or {}).get(e.threads, 1.0) * seconds.get((e.precision, e.layout), 9.0) for e in entries}

    monkeypatch.setattr(racing, "race", run)
    return ran


AMX = {("fp32", "channels-last"): 4.0, ("fp32", "contiguous"): 5.0, ("bf16", "channels-last"): 1.0, ("bf16", "contiguous"): 2.0}
OLD = {("fp32", "channels-last"): 5.0, ("fp32", "contiguous"): 4.0, ("bf16", "channels-last"): 20.0, ("bf16", "contiguous"): 30.0}


def test_a_race_is_short_and_leaves_no_trace(threads: int) -> None:
    state, start = torch.get_rng_state(), time.process_time()
    found = race(CPU, ALL, seconds=0.1)
    assert time.process_time() - start < 10
    assert set(found) == set(ALL)
    assert all(t > 0 for t in found.values())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_race_finds_what_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lap that is known to take longer for one entry: its times say so, and it drops out after the first lap that counts."""
    laps: list[str] = []

    def lap(net: nn.Module, x: torch.Tensor, precision: str) -> float:
        laps.append(precision)
        if precision == "nothing":
            raise RuntimeError("not here")
        return {"bf16": 0.03, "fp32": 0.01}[precision]

    monkeypatch.setattr(racing, "lap", lap)
    found = race(CPU, [Entry(p, "contiguous", 1) for p in ("fp32", "bf16", "nothing")], seconds=0)
    assert found == {Entry("fp32", "contiguous", 1): 0.01, Entry("bf16", "contiguous", 1): 0.03}
    assert (laps.count("nothing"), laps.count("bf16"), laps.count("fp32")) == (1, 2, 4)


@pytest.mark.parametrize(("machine", "precision", "layout"), [(AMX, "bf16", "channels-last"), (OLD, "fp32", "contiguous")])
def test_the_faster_one_is_chosen_with_its_reason(monkeypatch: pytest.MonkeyPatch, machine: dict[tuple[str, str], float], precision: str, layout: str) -> None:
    pretend(monkeypatch, machine)
    chosen = Where.choose("cpu")
    assert (chosen.precision, chosen.layout, chosen.compile) == (precision, layout, False)
    assert set(chosen.why) == {"precision", "layout", "compile"}
    assert "of the time" in str(chosen)


def test_a_small_gain_is_not_worth_the_lost_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {("fp32", "channels-last"): 1.1, ("bf16", "channels-last"): 1.0})
    assert Where.choose("cpu").precision == "fp32"


def test_what_the_user_says_holds(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    ran = pretend(monkeypatch, AMX)
    said = Where.choose("cpu", "fp32", "off", "contiguous", 1)
    assert (said.precision, said.layout, said.compile, said.threads, dict(said.why)) == ("fp32", "contiguous", False, 1, {})
    assert not ran, "nothing was left to find out"
    assert torch.get_num_threads() == 1
    assert Where.choose("cpu", "fp32").layout == "channels-last"
    assert Where.choose("cpu", layout="contiguous").precision == "bf16"
    with pytest.raises(UserError, match="--device nonsense"):
        Where.choose("nonsense")


def test_a_machine_is_raced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = pretend(monkeypatch, AMX)
    first = times(CPU, 1)
    assert times(CPU, 1) == first == AMX
    assert len(ran) == 1
    times(CPU, 2)
    assert len(ran) == 2, "another number of threads is another race"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    times(CPU, 1)
    assert len(ran) == 3, "and so is another instruction set"


def test_threads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    torch.set_num_threads(8)
    pretend(monkeypatch, AMX, {8: 1.0, 4: 0.5, 2: 0.7, 1: 1.2})
    monkeypatch.setattr(os, "getloadavg", lambda: (7.5, 7.5, 7.5))
    assert fewer_threads(CPU, "fp32", "contiguous", 8) == 8, "a busy machine says nothing"
    assert recall("threads") == {}
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    assert fewer_threads(CPU, "fp32", "contiguous", 8) == 4
    pretend(monkeypatch, AMX, {8: 1.0, 4: 0.98})
    assert fewer_threads(CPU, "fp32", "contiguous", 8) == 4, "kept"
    assert fewer_threads(CPU, "bf16", "contiguous", 8) == 8, "not for a fiftieth"
    assert Where.choose("cpu", threads="auto").threads == 8
    assert Where.choose("cpu", "fp32", layout="contiguous", threads="auto").threads == 4
    assert torch.get_num_threads() == 8, "set when a method is placed"
    assert Where.choose("cpu").threads == 8, "from Python, torch's own"
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert Where.choose("cpu", "fp32", layout="contiguous", threads="auto").threads == 8, "the user has said it"


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_without_fast_bf16_fp32_is_chosen(isa: str) -> None:
    """A processor without bf16 instructions, as oneDNN and torch can be told to take this one for: the real race, in a process of its own."""
    code = "from pixelkiln.engine.where import Where; w = Where.choose('cpu', layout='channels-last'); print(w.precision, w.why['precision'])"
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"} | ({"ATEN_CPU_CAPABILITY": "avx2"} if isa == "AVX2" else {})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fp32"), done.stdout


class Layers(nn.Module):
    """Holds one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(4, 4, 3)
        self.parents: dict[str, nn.Module] = {}


def test_a_layout_is_that_of_the_weights(threads: int) -> None:
    for layout, last in (("channels-last", True), ("contiguous", False)):
        method = Layers()
        method.net.weight.data = method.net.weight.data.to(memory_format=torch.contiguous_format if last else torch.channels_last)
        Where("cpu", "fp32", False, threads, layout).place(method)  # type: ignore[arg-type]
        assert method.net.weight.is_contiguous(memory_format=torch.channels_last) == last


def order(out: Path) -> Order:
    return Order("dcgan", "digits", out, "tiny", Budget(steps=4), changes={"train.save_every": "2"})


def test_a_run_records_it_and_a_resumed_one_keeps_it(tmp_path: Path, threads: int) -> None:
    begun = Where("cpu", "bf16", False, 1, "contiguous", {"threads": "of 2"})
    run = train(order(tmp_path / "r"), begun, log=QUIET)
    facts = run.read_recipe()["where"]
    assert (facts["precision"], facts["layout"], facts["compile"], facts["threads"], facts["why"]) == ("bf16", "contiguous", False, 1, {"threads": "of 2"})
    assert json.loads(run.recipe_file.read_text())["where"]["processor"]
    for wish, got in (
        (Where("cpu", "fp32", True, 2, "channels-last", {"threads": "of 2"}), 1),
        (Where("cpu", "fp32", True, 2, "channels-last"), 2),  # the user's own number of threads holds, and is noted
    ):
        kept = wish.kept(facts)
        assert (kept.precision, kept.layout, kept.compile, kept.threads) == ("bf16", "contiguous", False, got)
    assert replace(wish, why={"threads": ""}).kept(facts | {"processor": "another"}).threads == 2
    assert wish.kept({k: v for k, v in facts.items() if k not in ("layout", "why")}).layout == "channels-last", "a run of version 0.1.0"


def test_resuming_with_another_wish_says_so_and_ends_with_the_same_weights(tmp_path: Path, threads: int, capsys: pytest.CaptureFixture[str]) -> None:
    begun = Where("cpu", "fp32", False, threads, "contiguous")
    whole = train(order(tmp_path / "whole"), begun, log=QUIET).checkpoint().tensors("weights")
    run = train(order(tmp_path / "r"), begun, log=QUIET)
    newest = run.checkpoint().path
    assert newest.name == "step-00000004"
    newest.rename(tmp_path / "gone")
    train(Order("dcgan", "", tmp_path / "r", "tiny"), Where("cpu", "bf16", False, threads, "channels-last"), resume=True)
    said = capsys.readouterr().err
    assert "begun with precision fp32, which a resumed run keeps" in said
    assert "begun with layout contiguous" in said
    again = run.checkpoint().tensors("weights")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_without_a_compiler_compile_on_is_one_line(tmp_path: Path) -> None:
    code = "from pixelkiln.engine.where import Where; Where.choose('cpu', 'fp32', 'on', 'contiguous')"
    env = os.environ | {"CXX": str(tmp_path / "none"), "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "pixelkiln.core.errors.UserError: --compile on: torch.compile does not work here" in done.stderr


@pytest.fixture(scope="module")
def compiler() -> None:
    """Skips where torch.compile does not work."""
    try:
        _check_compiler(CPU)
    except UserError as e:
        pytest.skip(str(e))


@pytest.mark.filterwarnings("ignore")  # torch deprecates what it uses itself
@pytest.mark.usefixtures("compiler")
def test_compiled_training_is_training(tmp_path: Path, threads: int) -> None:
    """The weights after some steps, within rounding; and sampling in the middle compiles nothing."""
    found = []
    for compiled in (False, True):
        order = Order("vae-mlp", "digits", tmp_path / f"{compiled}", "tiny", Budget(steps=4))
        found.append(train(order, Where("cpu", "fp32", compiled, threads), log=QUIET).checkpoint().tensors("weights"))
    eager, compiled_weights = found
    assert eager.keys() == compiled_weights.keys()
    for name, w in eager.items():
        torch.testing.assert_close(compiled_weights[name], w, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore")  # torch deprecates what it uses itself
@pytest.mark.usefixtures("compiler")
def test_a_gradient_of_a_gradient_is_refused_in_one_line_when_compiled(tmp_path: Path, threads: int) -> None:
    toys = str(Path(__file__).with_name("toys.py"))
    train(Order(f"{toys}:penalized", "digits", tmp_path / "eager", "tiny"), Where("cpu", "fp32", False, threads), log=QUIET)
    with pytest.raises(UserError, match="differentiates a gradient, which compiled networks cannot"):
        train(Order(f"{toys}:penalized", "digits", tmp_path / "compiled", "tiny"), Where("cpu", "fp32", True, threads), log=QUIET)


@pytest.mark.filterwarnings("ignore")  # torch deprecates what it uses itself
@pytest.mark.usefixtures("compiler")
def test_spectral_norm_compiled_with_two_passes_before_the_backward_one() -> None:
    """As a discriminator sees real images and others; one output, whose buffer of one number inductor kept for the backward pass and the second pass overwrote."""

    class Judge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = spectral(nn.Linear(6, 8)), spectral(nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu())

    torch.manual_seed(0)
    eager, x, y = Judge(), torch.randn(4, 6), torch.randn(4, 6)
    compiled = copy.deepcopy(eager)
    compiled.compile()
    for _ in range(2):
        for net in (eager, compiled):
            (net(x).sigmoid().sum() - net(y).tanh().sum()).backward()
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
    for (name, b), c in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(c, b, msg=name)


def test_two_commands_that_race_at_once_settle_on_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would compute in two ways, and a resumed run would not find its own."""
    first: list[object] = []

    def measured(seconds: float) -> dict[Entry, float]:
        return {Entry(p, layout, 2): seconds for p in racing.PRECISIONS for layout in racing.LAYOUTS}

    def slow(device: torch.device, entries: Sequence[Entry]) -> dict[Entry, float]:
        monkeypatch.setattr(racing, "race", lambda device, entries: measured(1.0))
        first.append(times(CPU, 2))  # another command begins and ends while this one measures
        return measured(2.0)

    monkeypatch.setattr(racing, "race", slow)
    second = times(CPU, 2)
    assert second == first[0] == times(CPU, 2)
    assert set(second.values()) == {1.0}


@pytest.mark.parametrize(("flags", "said"), [("fpu avx2 avx512f avx512_bf16 amx_bf16", "X 1 (AMX)"), ("fpu avx2 avx512f", "X 1 (AVX512)"), ("fpu", "X 1")])
def test_a_processor_is_named_with_its_instructions(flags: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: f"processor\t: 0\nmodel name\t: X 1\nflags\t\t: {flags}\n\npower management:\n")
    assert processor() == said
