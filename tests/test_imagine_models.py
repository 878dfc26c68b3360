"""Where models come from and how they run: a Hub played by a server here, pickles, memory, guards, stopping."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
import pipelines
from fake_hub import Hub, serving
from pipelines import direct, imagine, pixels, recipe
from pixelkiln.cli.main import main
from pixelkiln.core.types import UserError
from pixelkiln.pretrained import memory, source
from pixelkiln.pretrained.gather import gather
from pixelkiln.pretrained.order import Order, Setup
from pixelkiln.pretrained.source import weights_of
from pixelkiln.pretrained.studio import Studio
from pixelkiln.pretrained.watch import Stopped, Watch

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_network")]
COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = shutil.copytree(pipelines.folder(models, "sd"), tmp_path / "hub-model")
    for extra in ("unet/diffusion_pytorch_model.bin", "unet/flax_model.msgpack", "v1.ckpt", "README.md"):
        (folder / extra).write_bytes(b"not wanted")
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(source, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # what arrives is counted by such pieces
    with serving(Hub("models", "me/tiny", files, {"main": COMMITS[0]}, lfs=5000), {"HF_HUB_CACHE": str(tmp_path / "hf")}) as found:
        yield found


WORDS = ("a cat", "--steps", 1, "--size", 16)


def test_a_model_of_the_hub_is_pinned_fetched_once_and_then_needs_no_network(hub: Hub, models: Path, tmp_path: Path) -> None:
    hub.failures, hub.cut = 1, 60_000
    assert imagine("me/tiny", *WORDS, "--out", tmp_path / "one") == 0
    expected = direct(pipelines.folder(models, "sd"), prompt="a cat", num_inference_steps=1, seed=0, width=16, height=16)
    assert np.array_equal(pixels(tmp_path / "one" / "000000.png"), expected)
    assert recipe(tmp_path / "one" / "000000.png")["setup"]["model"] == f"me/tiny@{COMMITS[0]}"
    assert not any(word in line for line in hub.asked for word in (".bin", ".ckpt", ".msgpack", "README"))
    assert any("bytes=" in line and not line.endswith("bytes=0-") for line in hub.asked), "the transfer that broke off went on where it stopped"
    count = len(hub.asked)
    hub.revisions["main"] = COMMITS[1]  # the model has changed since; the pin holds
    assert imagine("me/tiny", *WORDS, "--out", tmp_path / "two") == 0
    assert len(hub.asked) == count, "no network"
    assert main(["reproduce", str(tmp_path / "one" / "000000.png"), "--quiet"]) == 0
    assert imagine("me/tiny", *WORDS, "--update", "--out", tmp_path / "three") == 0
    assert recipe(tmp_path / "three" / "000000.png")["setup"]["model"] == f"me/tiny@{COMMITS[1]}"


def test_what_the_hub_lists_and_what_it_sends_must_agree(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.lies["vae/config.json"] = hub.files["vae/config.json"].replace(b"32", b"33")
    assert imagine("me/tiny", *WORDS, "--out", tmp_path / "x") == 2
    assert "vae/config.json is not what the Hub lists (checksum mismatch)" in capsys.readouterr().err
    assert imagine("me/none", *WORDS, "--out", tmp_path / "x") == 2
    assert "no such model" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_pickles_and_code_are_refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(pipelines.folder(models, "sd"), tmp_path / "m")
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")
    (tmp_path / "x.ckpt").write_bytes(b"x")
    index = json.loads((model / "model_index.json").read_text())
    for name, change in (("code", {"_class_name": ["pipeline", "Mine"]}), ("part", {"unet": ["my_module", "Net"]})):
        other = shutil.copytree(pipelines.folder(models, "sd"), tmp_path / name)
        (other / "model_index.json").write_text(json.dumps(index | change))
    for path, said in ((model, "only as a pickle (diffusion_pytorch_model.bin), which runs code"), (tmp_path / "x.ckpt", "are pickles"),
                       (tmp_path / "code", "code of its own"), (tmp_path / "part", "code of my_module")):
        assert imagine(path, *WORDS, "--out", tmp_path / "out") == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_variants_and_shards() -> None:
    names = ["unet/model.safetensors", "unet/model.fp16.safetensors", "unet/model.bin"]
    assert weights_of(names, "unet", "") == names[:1] and weights_of(names, "unet", "fp16") == names[1:2]
    shards = ["t/model-00001-of-00002.safetensors", "t/model-00002-of-00002.safetensors", "t/model.safetensors.index.json"]
    assert weights_of([*shards, "t/model.fp16-00001-of-00001.safetensors"], "t", "") == shards
    with pytest.raises(UserError, match="--variant fp16"):
        weights_of(names[1:], "unet", "")


def studio(models: Path, **setup: Any) -> tuple[Studio, list[str]]:
    said: list[str] = []
    return Studio(gather(Setup(str(pipelines.folder(models, "sd")), **setup), said.append), said.append), said


def test_out_of_memory_is_tried_once_more_with_the_next_cheaper_setting(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = studio(models, memory="none")
    order, forward, failures = Order("a", steps=2, width=16, height=16), type(found.net).forward, [1]

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(found.net), "forward", full)
    (done,) = found.paint([order])
    assert done.facts["memory"] == "tiling" and "once more with the VAE by tiles" in said[-1]
    failures[0] = 2
    with pytest.raises(UserError, match="full even with tiling, and attention by slices"):
        found.paint([order])
    failures[0] = 1
    with pytest.raises(UserError, match="take a smaller --size"):
        found.paint([order])


def test_the_ladder_is_chosen_by_what_is_free(models: Path) -> None:
    found, _ = studio(models)
    weights = sum(p.numel() * 4 for m in found.pipe.components.values() if isinstance(m, torch.nn.Module) for p in m.parameters())
    work = 512 * 512 * memory.BYTES * 4
    free = (weights + work, weights + work // 2, weights + work // 4, weights + work // 4 - 1, 0)
    assert [memory.choose_level(found.pipe, "cuda", 512 * 512, n) for n in free] == ["none", "tiling", "slicing", "offload", "sequential"]
    assert memory.choose_level(found.pipe, "cpu", 512 * 512, 0) == "slicing"
    assert memory.free_memory("cpu") > 0


@pytest.mark.parametrize(("mode", "black"), [("blank", True), ("record", False), ("off", False)])
def test_the_safety_check_acts_as_configured_and_is_recorded(models: Path, tmp_path: Path, mode: str, black: bool) -> None:
    model = pipelines.folder(models, "sd_flagged")
    assert imagine(model, *WORDS, "--safety", mode, "--out", tmp_path / "out") == 0
    file = tmp_path / "out" / "000000.png"
    assert bool(pixels(file).max() == 0) is black
    assert recipe(file)["facts"]["safety"] == {"blank": "flagged, made black", "record": "flagged, kept", "off": "off"}[mode]
    if mode == "record":
        expected = direct(model, parts={"safety_checker": None}, prompt="a cat", num_inference_steps=1, seed=0, width=16, height=16)
        assert np.array_equal(pixels(file), expected)
    assert mode != "blank" or main(["reproduce", str(file), "--quiet"]) == 0


def test_the_watermark_is_applied_where_there_is_one_and_recorded(models: Path) -> None:
    class Mark:
        def apply_watermark(self, images: torch.Tensor) -> torch.Tensor:
            return -images

    from pixelkiln.pretrained.guards import Guards

    found = Studio(gather(Setup(str(pipelines.folder(models, "sdxl"))), lambda line: None))
    order = Order("a", steps=1, width=16, height=16)
    (plain,) = found.paint([order])
    assert plain.facts["watermark"] == "none: the package invisible-watermark is missing" or found.pipe.watermark is not None
    found.pipe.watermark = Mark()
    found.guards = Guards(found.pipe, "blank", "auto")
    (marked,) = found.paint([order])
    assert (255 - marked.image.int() - plain.image.int()).abs().max() <= 1
    assert found.guards.facts(0, 256, 256)["watermark"] == "applied" and "narrower" in marked.facts["watermark"]
    found.guards = Guards(found.pipe, "blank", "off")
    assert found.paint([order])[0].facts["watermark"] == "off" and found.pipe.watermark is None


def test_a_stopped_watch_begins_no_further_evaluation(models: Path) -> None:
    found, _ = studio(models)
    watch = Watch()
    watch.at = lambda done: watch.stop() if done == 2 else None
    with pytest.raises(Stopped):
        found.paint([Order("a", steps=9, width=16, height=16)], watch)
    assert watch.evaluations == 2


def test_interrupting_keeps_the_finished_images(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted = Studio.paint

    def paint(self: Studio, orders: Any, watch: Watch) -> Any:
        def at(done: int) -> None:
            if done == 5:
                raise KeyboardInterrupt

        watch.at = at
        return painted(self, orders, watch)

    monkeypatch.setattr(Studio, "paint", paint)
    assert imagine(pipelines.folder(models, "sd"), "a cat", "-n", 4, "--steps", 2, "--size", 16, "--preview", 1, "--out", tmp_path / "out") == 130
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "sheet.png"]


@pytest.mark.parametrize("name", ["sd", "flux", "pixart"])
def test_previews(models: Path, name: str) -> None:
    found = Studio(gather(Setup(str(pipelines.folder(models, name))), lambda line: None))
    seen: list[torch.Tensor] = []
    found.paint([Order("a", steps=3, width=32, height=32)], Watch(preview=seen.append, every=1))
    assert len(seen) == 3 and all(s.shape == (1, 3, 32, 32) for s in seen)


def test_without_diffusers_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert imagine(tmp_path, *WORDS, "--out", tmp_path / "x") == 2
    assert capsys.readouterr().err == "pixelkiln: pretrained pipelines need the library diffusers: pip install 'pixelkiln[pretrained]'\n"
