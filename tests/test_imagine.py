"""`pixelkiln imagine` on tiny random pipelines of every class, against diffusers called directly: equal images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
import pipelines
from pipelines import direct, imagine, pixels, recipe
from pixelkiln.cli.main import main

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_network")]
TEXT = ("sd", "sd21", "sdxl", "sd3", "flux", "pixart", "sana")


@pytest.mark.parametrize("name", TEXT)
def test_every_class_gives_what_diffusers_gives(models: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = pipelines.folder(models, name)
    size = 16 if name == "flux" else 32
    assert imagine(model, "a red cat", "--out", tmp_path / "out", "--steps", 2, "--seed", 5, "--size", size) == 0
    file = tmp_path / "out" / "000000.png"
    expected = direct(model, prompt="a red cat", num_inference_steps=2, seed=5, width=size, height=size)
    assert np.array_equal(pixels(file), expected)
    assert expected.std() > 1
    found = recipe(file)
    assert (found["order"]["seed"], found["order"]["steps"], found["setup"]["model"]) == (5, 2, str(model))
    assert found["order"]["solver"] == ("dpmpp-2m" if name in ("sd", "sd21", "sdxl") else "own")
    assert {"torch", "diffusers", "transformers", "pixelkiln"} <= set(found["facts"]["versions"])
    if name not in ("sd", "sd21", "sana"):  # the others are reproduced by other tests
        return
    assert main(["reproduce", str(file), "--quiet", "--out", str(tmp_path / "again.png")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "identical"
    assert np.array_equal(pixels(tmp_path / "again.png"), expected)


def test_an_image_does_not_depend_on_the_batch_and_is_reproduced_from_its_own(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pipelines.folder(models, "sd")
    words = (model, "a cat", "a dog", "-n", 2, "--steps", 2, "--size", 16, "--seed", 7, "--negative", "blurred", "--solver", "euler-a")
    assert imagine(*words, "--out", tmp_path / "one") == 0
    assert imagine(*words, "--batch", 3, "--out", tmp_path / "three") == 0
    expected = direct(model, solver="EulerAncestralDiscreteScheduler", prompt="a dog", negative_prompt="blurred", num_inference_steps=2, seed=8, width=16, height=16)
    assert np.array_equal(pixels(tmp_path / "one" / "000003.png"), expected)
    for i in range(4):
        off = np.abs(pixels(tmp_path / "one" / f"{i:06d}.png").astype(int) - pixels(tmp_path / "three" / f"{i:06d}.png"))
        assert off.max() <= 1, "rounding of sums in other batches at most"
    assert main(["reproduce", str(tmp_path / "three" / "000002.png"), "--quiet"]) == 0
    assert recipe(tmp_path / "three" / "000001.png")["mates"] == [["a cat", 7], ["a cat", 8], ["a dog", 7]]
    assert capsys.readouterr().out.count("identical") == 1


KINDS = {"sd": {"ddim": "DDIMScheduler", "unipc": "UniPCMultistepScheduler", "heun": "HeunDiscreteScheduler", "own": "own", "lms": "LMSDiscreteScheduler"},
         "sd21": {"euler": "EulerDiscreteScheduler"}, "sd3": {"heun": "FlowMatchHeunDiscreteScheduler"}, "flux": {"euler": "FlowMatchEulerDiscreteScheduler"}}


@pytest.mark.parametrize("name", KINDS)
def test_every_solver_by_its_name(models: Path, name: str) -> None:
    """As diffusers' where it is named above; the others run."""
    from pixelkiln.pretrained.gather import gather
    from pixelkiln.pretrained.order import Order, Setup
    from pixelkiln.pretrained.solver import FLOWS, SOLVERS
    from pixelkiln.pretrained.studio import Studio

    model = pipelines.folder(models, name)
    studio = Studio(gather(Setup(str(model)), lambda line: None))
    for solver in {*KINDS[name], *{"sd": SOLVERS, "sd3": FLOWS}.get(name, ())} - {"dpmpp-2m", "euler-a"}:
        (done,) = studio.paint([Order("a cat", steps=2, solver=solver, width=16, height=16, guidance=3.0)])
        image = done.image.permute(1, 2, 0).numpy()
        assert image.std() > 1, solver
        if solver in KINDS[name]:
            expected = direct(model, solver=KINDS[name][solver], prompt="a cat", num_inference_steps=2, seed=0, width=16, height=16, guidance_scale=3.0)
            assert np.array_equal(image, expected), solver


def test_flux_with_a_negative_prompt(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pipelines.folder(models, "flux")
    words = (model, "a cat", "--steps", 2, "--size", 16, "--negative", "fog")
    assert imagine(*words, "--out", tmp_path / "x") == 2
    assert "--true-guidance above 1" in capsys.readouterr().err
    assert imagine(*words, "--true-guidance", 3, "--out", tmp_path / "out") == 0
    expected = direct(model, prompt="a cat", negative_prompt="fog", true_cfg_scale=3.0, num_inference_steps=2, seed=0, width=16, height=16)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)


def test_styles_times_contents_make_a_table(models: Path, tmp_path: Path) -> None:
    model = pipelines.folder(models, "sd")
    assert imagine(model, "--steps", 1, "a {red|blue} cat", "--style", "Monet", "--style", "{}, woodcut", "--size", 16, "--out", tmp_path / "out") == 0, "prompts after options"
    texts = [Image.open(tmp_path / "out" / f"{i:06d}.png").text["Description"] for i in range(4)]  # type: ignore[attr-defined]
    assert texts == ["a red cat, in the style of Monet", "a red cat, woodcut", "a blue cat, in the style of Monet", "a blue cat, woodcut"]
    sheet = Image.open(tmp_path / "out" / "sheet.png")
    assert sheet.width > 150 + 2 * 32 and np.array(sheet).min() < 100, "titles are written"
    assert imagine(model, "a cat", "--vary", "guidance=1,5", "--vary", "steps=1,2", "--size", 16, "--out", tmp_path / "vary") == 0
    found = [recipe(tmp_path / "vary" / f"{i:06d}.png")["order"] for i in range(4)]
    assert [(o["guidance"], o["steps"]) for o in found] == [(1, 1), (1, 2), (5, 1), (5, 2)]


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_a_walk_ends_at_the_images_of_its_prompts(models: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    model = pipelines.folder(models, name)
    prompts, size = ("a red cat", "an old dog on a hill"), 32 if name == "sana" else 16
    assert imagine(model, *prompts, "--steps", 1, "--size", size, "--frames", 3, "--out", tmp_path / "walk") == 0
    ends = [direct(model, prompt=prompt, num_inference_steps=1, seed=0, width=size, height=size) for prompt in prompts]
    frames = [pixels(tmp_path / "walk" / f"{i:06d}.png") for i in range(3)]
    assert np.array_equal(frames[0], ends[0])
    assert np.array_equal(frames[2], ends[1])
    assert not np.array_equal(frames[0], frames[2])
    assert Image.open(tmp_path / "walk" / "walk.gif").n_frames == 4  # type: ignore[attr-defined]
    assert Image.open(tmp_path / "walk" / "strip.png").width == 3 * (frames[0].shape[1] + 2) + 2
    assert not (tmp_path / "walk" / "walk.mp4").exists()
    if name in ("sd", "pixart"):
        assert main(["reproduce", str(tmp_path / "walk" / "000001.png"), "--quiet"]) == 0


def test_a_walk_in_between_is_what_diffusers_makes_of_the_embeddings(models: Path, tmp_path: Path) -> None:
    model = pipelines.folder(models, "sdxl")
    assert imagine(model, "a red cat", "a dog", "--frames", 3, "--path", "lerp", "--steps", 2, "--size", 16, "--out", tmp_path / "walk") == 0

    def prepare(pipe: object) -> dict[str, torch.Tensor]:
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        two = [pipe.encode_prompt(text, device="cpu") for text in ("a red cat", "a dog")]  # type: ignore[attr-defined]
        return {name: ((x.double() + y.double()) / 2).float().detach() for name, x, y in zip(names, *two, strict=True)}

    expected = direct(model, prepare=prepare, num_inference_steps=2, seed=0, width=16, height=16)
    assert np.array_equal(pixels(tmp_path / "walk" / "000001.png"), expected)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_noise_goes_along_the_sphere(models: Path, tmp_path: Path, name: str) -> None:
    model = pipelines.folder(models, name)
    assert imagine(model, "a cat", "--frames", 3, "--seed", 1, "--to-seed", 2, "--steps", 1, "--size", 16, "--out", tmp_path / "walk") == 0
    for frame, seed in ((0, 1), (2, 2)):
        expected = direct(model, prompt="a cat", num_inference_steps=1, seed=seed, width=16, height=16)
        assert np.array_equal(pixels(tmp_path / "walk" / f"{frame:06d}.png"), expected)
    assert not np.array_equal(pixels(tmp_path / "walk" / "000001.png"), expected)
    assert name != "sd" or main(["reproduce", str(tmp_path / "walk" / "000001.png"), "--quiet"]) == 0


def test_mp4_where_ffmpeg_is(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text('#!/bin/sh\nfor last; do :; done\n/bin/cat > "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert imagine(pipelines.folder(models, "sd"), "a", "b", "--frames", 2, "--steps", 1, "--size", 16, "--out", tmp_path / "walk") == 0
    assert (tmp_path / "walk" / "walk.mp4").stat().st_size == 2 * 16 * 16 * 3
    assert not list((tmp_path / "walk").glob(".*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--solver", "eular"), "did you mean euler"), (("--stepz", "3"), "did you mean --steps"), (("--size", "33"), "not a multiple of 8"), (("--strength", "0.5"), "add --source"),
     (("--image-guidance", "2"), "does not know --image-guidance"), (("--frames", "3"), "needs two prompts"), (("--mask", "m.png"), "add --source"),
     (("--vary", "stepz=1"), "did you mean steps"), (("--memory", "offload"), "nowhere to move"), (("--watermark", "on"), "supplies none"),
     (("--spacing", "karras", "--solver", "ddim"), "no karras spacing"), (("--lora", "no.safetensors"), "no such folder"),
     (("--source", "no.png"), "no such image")],
)
def test_a_mistake_is_one_line_and_nothing_is_written(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    assert imagine(pipelines.folder(models, "sd"), "a cat", "--steps", 1, "--out", tmp_path / "out", *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_missing_damaged_or_of_changed_files(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pipelines.folder(models, "sd")
    assert imagine(model, "a cat", "--steps", 1, "--size", 16, "--out", tmp_path / "out", "--bare") == 0
    bare = tmp_path / "out" / "000000.png"
    assert Image.open(bare).text == {}  # type: ignore[attr-defined]
    assert main(["reproduce", str(bare)]) == 2
    assert "carries no recipe" in capsys.readouterr().err
    assert imagine(model, "a cat", "--steps", 1, "--size", 16, "--out", tmp_path / "two") == 0
    found = recipe(tmp_path / "two" / "000000.png")
    for change, said in ((found | {"format": 9}, "another version"), (found | {"position": 3}, "damaged"), (found | {"order": {}}, "missing"),
                         (found | {"digests": {str(model): "0" * 64}}, "has changed")):
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("pixelkiln", json.dumps(change))
        Image.open(bare).save(tmp_path / "x.png", pnginfo=info)
        assert main(["reproduce", str(tmp_path / "x.png"), "--quiet"]) == 2
        assert said in capsys.readouterr().err
