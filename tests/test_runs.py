"""Run folders: what is written is whole, what is damaged is found, what is a pickle is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pixelkiln.core import runs as runs_module
from pixelkiln.core.files import read_json, read_tensors, write_bytes, write_json, write_tensors
from pixelkiln.core.runs import Run
from pixelkiln.core.types import UserError

GROUPS = {"weights": {"a.b": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}, "average": {}, "optim": {"main.0.step": torch.tensor(3.0)}}


def saved(path: Path, *steps: int) -> Run:
    run = Run(path)
    for step in steps:
        run.save(step, GROUPS, {"seconds": 1.5, "seen": []}, keep=3)
    return run


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    point = saved(tmp_path, 10).checkpoint()
    assert point.step == 10
    assert point.state["seconds"] == 1.5
    weights = point.tensors("weights")
    assert torch.equal(weights["a.b"], GROUPS["weights"]["a.b"])
    assert weights["n"].dtype == torch.int64
    assert point.tensors("average") == {}


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "state", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    """A flipped bit is not noticed by safetensors itself: the manifest's hash notices it."""
    run = saved(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints" / "step-00000002"
    file = folder / {"state": "state.json", "manifest": "manifest.json"}.get(damage, "weights.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(data[:-4])
    else:
        data[-2] ^= 1
        file.write_bytes(data)
    found, bad = run.last_good()
    assert found is not None
    assert found.step == 1
    assert len(bad) == 1
    assert "step-00000002" in bad[0]


def test_without_any_good_checkpoint_it_says_so(tmp_path: Path) -> None:
    run = saved(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000001" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no usable checkpoint.*weights"):
        run.checkpoint()


def test_old_checkpoints_go_and_two_stay(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3, 4):
        run.save(step, GROUPS, {"seen": []})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


def test_a_kill_while_writing_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at every single file that a checkpoint writes, and at each rename: the older one is always found."""
    for fail_at in range(5):
        base = tmp_path / str(fail_at)
        run = saved(base, 1)
        count = iter(range(100))

        def dies(path: Path, obj: object, count: object = count, fail_at: int = fail_at) -> None:
            if next(count) == fail_at:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            write_tensors(path, obj) if path.suffix == ".safetensors" else write_json(path, obj)  # type: ignore[arg-type]

        monkeypatch.setattr(runs_module, "write_tensors", dies)
        monkeypatch.setattr(runs_module, "write_json", dies)
        if fail_at < 4:
            with pytest.raises(KeyboardInterrupt):
                run.save(2, GROUPS, {"seen": []})
            assert run.checkpoint().step == 1
        else:
            run.save(2, GROUPS, {"seen": []})
            assert run.checkpoint().step == 2
        monkeypatch.undo()


def test_saving_a_step_again_replaces_a_wreck(tmp_path: Path) -> None:
    run = saved(tmp_path, 5)
    (tmp_path / "checkpoints" / "step-00000005" / "state.json").write_text("{")
    run.save(5, GROUPS, {"seen": []})
    assert run.checkpoint().step == 5


def test_a_line_cut_by_a_kill_is_passed_over_and_rewound(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.append({"step": step, "loss": 1.0 / step})
    with open(run.metrics_file, "a") as f:
        f.write('{"step": 4, "lo')
    assert [r["step"] for r in run.records()] == [1, 2, 3]
    (tmp_path / "samples").mkdir()
    for step in (2, 3):
        (tmp_path / "samples" / f"step-{step:08d}.png").write_bytes(b"")
    run.rewind(2)
    assert run.metrics_file.read_text().count("\n") == 2
    assert [p.name for p in run.samples()] == ["step-00000002.png"]


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "last.ckpt", "pytorch_model.bin", "x.pkl"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    torch_file = tmp_path / name
    torch_file.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(UserError, match=r"run code.*safetensors"):
        read_tensors(torch_file)


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not a header")
    with pytest.raises(UserError, match=r"w\.safetensors"):
        read_tensors(tmp_path / "w.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"new": float("nan")})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    write_bytes(tmp_path / "b", b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        Run.open(tmp_path / "none")
    with pytest.raises(UserError, match="not a run folder"):
        Run.open(tmp_path)
    (tmp_path / "recipe.json").write_text("{]")
    with pytest.raises(UserError, match="damaged"):
        Run.open(tmp_path).read_recipe()
