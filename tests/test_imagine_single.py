"""Models that are one .safetensors file with their authors' names of tensors: images equal to those of the same pipeline as a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
import pipelines
from authors import save_single
from fake_hub import Hub, serving
from pipelines import direct, imagine, picture, pixels, recipe
from pixelkiln.cli.main import main
from pixelkiln.pretrained import source

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_network")]
COMMIT = "c" * 40
WORDS = ("a red cat", "--steps", 2, "--seed", 3, "--size", 16)


def configuration(model: Path, path: Path, keep: tuple[str, ...] = ()) -> Path:
    """The folder without its weights, but those of the parts to keep."""
    return shutil.copytree(model, path, ignore=lambda where, names: [n for n in names if n.endswith(".safetensors") and Path(where).name not in keep])


def single(models: Path, name: str, path: Path) -> Path:
    model = pipelines.folder(models, name)
    return save_single(str(json.loads((model / "model_index.json").read_text())["_class_name"]), pipelines.components(model), path)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_single_file_gives_the_images_of_its_folder(models: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = pipelines.folder(models, name)
    file, config = single(models, name, tmp_path / "one.safetensors"), configuration(model, tmp_path / "config")
    assert imagine(file, *WORDS, "--config", config, "--out", tmp_path / "out") == 0
    found = recipe(tmp_path / "out" / "000000.png")
    expected = direct(model, prompt="a red cat", num_inference_steps=2, seed=3, width=16, height=16)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert (found["setup"]["model"], found["setup"]["config"]) == (str(file), str(config)) and set(found["digests"]) == {str(file), str(config)}
    assert found["facts"]["safety"] == "none: the model supplies no check"
    if name == "sd3":
        assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0
        assert capsys.readouterr().out.endswith("identical\n")


def test_without_a_configuration_that_of_the_kind_comes_from_the_hub_pinned(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, name = pipelines.folder(models, "sd"), "stable-diffusion-v1-5/stable-diffusion-v1-5"
    file = single(models, "sd", tmp_path / "one.safetensors")
    files = {p.relative_to(model).as_posix(): p.read_bytes() for p in model.rglob("*") if p.is_file()}
    monkeypatch.setattr(source, "WAITS", (0.01,))
    with serving(Hub("models", name, files, {"main": COMMIT}), {"HF_HUB_CACHE": str(tmp_path / "hf")}) as hub:
        assert imagine(file, *WORDS, "--out", tmp_path / "out") == 0
        assert not any("safetensors" in line for line in hub.asked), "only what is small"
        count = len(hub.asked)
        assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0
        assert len(hub.asked) == count, "no network"
    expected = direct(model, prompt="a red cat", num_inference_steps=2, seed=3, width=16, height=16)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert recipe(tmp_path / "out" / "000000.png")["setup"]["config"] == f"{name}@{COMMIT}"


@pytest.mark.parametrize(("mode", "said"), [("blank", "flagged, made black"), ("off", "off")])
def test_the_safety_check_of_the_configuration_s_folder_is_used(models: Path, tmp_path: Path, mode: str, said: str) -> None:
    file = single(models, "sd", tmp_path / "one.safetensors")
    config = configuration(pipelines.folder(models, "sd"), tmp_path / "config")
    pipelines.safety_checker(flagged=True).save_pretrained(config / "safety_checker")
    assert imagine(file, *WORDS, "--config", config, "--safety", mode, "--out", tmp_path / "out") == 0
    assert recipe(tmp_path / "out" / "000000.png")["facts"]["safety"] == said
    assert bool(pixels(tmp_path / "out" / "000000.png").any()) is (mode == "off")
    assert mode == "off" or main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


def test_a_single_file_edits_as_its_folder_does(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "in.png", 16, 16)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    net = pipelines.controlnet(tmp_path / "net", 1)
    start = ("--source", tmp_path / "in.png")
    control = ("--control", net, tmp_path / "in.png")
    for name, ways in (("sd", ((*start, *control), control)), ("sd_inpaint", ((*start, "--mask", tmp_path / "mask.png"),)), ("ip2p", (start,))):
        file, model = single(models, name, tmp_path / f"{name}.safetensors"), pipelines.folder(models, name)
        for i, way in enumerate(ways):
            words = ("a cat", *way, "--steps", 2, *(() if "--source" in way else ("--size", 16)), "--safety", "off")
            assert imagine(file, "--config", model, *words, "--out", tmp_path / f"{name}{i}") == 0
            assert imagine(model, *words, "--out", tmp_path / f"{name}{i}-folder") == 0
            ours, theirs = (recipe(tmp_path / f"{name}{i}{end}" / "000000.png")["facts"]["pipeline"] for end in ("", "-folder"))
            assert ours == theirs
            assert np.array_equal(pixels(tmp_path / f"{name}{i}" / "000000.png"), pixels(tmp_path / f"{name}{i}-folder" / "000000.png"))
    capsys.readouterr()
    for name, said in (("sd_inpaint", "made for inpainting"), ("ip2p", "edits by instruction")):
        assert imagine(tmp_path / f"{name}.safetensors", "a", "--config", pipelines.folder(models, name), "--out", tmp_path / "x") == 2
        assert said in capsys.readouterr().err


def test_what_a_file_lacks_comes_from_the_configuration(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As files of FLUX are: the transformer alone. Its own names are those of large models only (diffusers splits at 3072), so here with diffusers'."""
    model = pipelines.folder(models, "flux")
    file = shutil.copy(model / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path / "flux.safetensors")
    assert imagine(file, *WORDS, "--config", model, "--out", tmp_path / "out") == 0
    expected = direct(model, prompt="a red cat", num_inference_steps=2, seed=3, width=16, height=16)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0
    capsys.readouterr()
    config = configuration(model, tmp_path / "config", ("vae",))
    assert imagine(file, *WORDS, "--config", config, "--out", tmp_path / "x") == 2
    err = capsys.readouterr().err
    assert "holds no text_encoder, and its configuration has no weights of one" in err and err.count("\n") == 1
    torch.save({}, config / "text_encoder" / "pytorch_model.bin")
    assert imagine(file, *WORDS, "--config", config, "--out", tmp_path / "x") == 2
    assert "only as a pickle" in capsys.readouterr().err


def test_a_file_that_is_damaged_or_incomplete_is_one_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    model = pipelines.folder(models, "sd")
    file = single(models, "sd", tmp_path / "one.safetensors")
    some = {name: tensor for name, tensor in load_file(file).items() if "layers.1.mlp" not in name}
    save_file(some, tmp_path / "some.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:50_000])
    wrong = pipelines.folder(models, "sd3")
    for words, said in ((("torn.safetensors", "--config", model), "no readable .safetensors"), (("some.safetensors", "--config", model), "lacks 4 tensors of its text_encoder"),
                        (("one.safetensors", "--config", model / "unet"), "no pipeline of diffusers"), (("one.safetensors", "--config", wrong), "cannot be opened")):
        assert imagine(tmp_path / words[0], *WORDS, *words[1:], "--out", tmp_path / "x") == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert imagine(model, *WORDS, "--config", model, "--out", tmp_path / "x") == 2
    assert "--config is for a model that is one .safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
