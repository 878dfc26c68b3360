"""Images from images: image to image, inpainting, outpainting, instructions, ControlNet, IP-Adapter, LoRA; equal to diffusers called directly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
import pipelines
from pipelines import direct, imagine, picture, pixels
from pixelkiln.cli.main import main
from pixelkiln.core.types import UserError
from pixelkiln.pretrained.pictures import canvas, composite, edges

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_network")]


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_image_to_image(models: Path, tmp_path: Path, name: str) -> None:
    model, source = pipelines.folder(models, name), picture(tmp_path / "in.png")
    assert imagine(model, "a cat", "--source", tmp_path / "in.png", "--strength", 0.5, "--steps", 4, "--seed", 3, "--out", tmp_path / "out") == 0
    size = {} if name in ("sd", "sdxl") else {"width": 32, "height": 32}
    expected = direct(model, "AutoPipelineForImage2Image", prompt="a cat", image=source, strength=0.5, num_inference_steps=4, seed=3, **size)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert name != "sd" or main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


def test_image_to_image_in_batches_of_another_size_and_its_mistakes(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pipelines.folder(models, "sd")
    picture(tmp_path / "in.png", 45, 37)
    words = (model, "a cat", "--source", tmp_path / "in.png", "--steps", 4)
    assert imagine(*words, "-n", 2, "--batch", 2, "--out", tmp_path / "out") == 0
    assert pixels(tmp_path / "out" / "000001.png").shape == (40, 48, 3)
    assert imagine(*words, "--strength", 0.2, "--out", tmp_path / "x") == 2
    assert "less than one step" in capsys.readouterr().err
    assert imagine(pipelines.folder(models, "sana"), "a", "--source", tmp_path / "in.png", "--out", tmp_path / "x") == 2
    err = capsys.readouterr().err
    assert "cannot be opened for image to image" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["sd", "sd_inpaint", "sdxl", "sd3", "flux"])
def test_inpainting_leaves_what_is_outside_bit_for_bit(models: Path, tmp_path: Path, name: str) -> None:
    model = pipelines.folder(models, name)
    source = np.array(picture(tmp_path / "in.png", 45, 37))
    mask = np.zeros((37, 45), np.uint8)
    mask[8:20, 10:31] = 255
    mask[30, 40] = 255  # one pixel
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ("--source", tmp_path / "in.png", "--mask", tmp_path / "mask.png", "--feather", 2, "--strength", 1.0)
    assert imagine(model, "a cat", *words, "--steps", 2, "--seed", 3, "--out", tmp_path / "out") == 0
    made = pixels(tmp_path / "out" / "000000.png")
    assert made.shape == source.shape
    assert np.array_equal(made[mask == 0], source[mask == 0])
    assert (made[10:18, 12:29] != source[10:18, 12:29]).mean() > 0.5
    if name in ("sd", "sd_inpaint"):
        on = canvas(torch.from_numpy(source).permute(2, 0, 1), torch.from_numpy(mask)[None], (0, 0, 0, 0), 2, 8, 2)
        pil = Image.fromarray(on.image.permute(1, 2, 0).numpy())
        inner = direct(model, "AutoPipelineForInpainting", prompt="a cat", image=pil, mask_image=Image.fromarray(on.mask.numpy()), strength=1.0,
                       num_inference_steps=2, seed=3, width=48, height=40)
        assert np.array_equal(composite(torch.from_numpy(inner).permute(2, 0, 1), on).permute(1, 2, 0).numpy(), made)
    assert name != "sdxl" or main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


def test_outpainting_keeps_the_source_in_its_place(models: Path, tmp_path: Path) -> None:
    source = np.array(picture(tmp_path / "in.png", 30, 20))
    assert imagine(pipelines.folder(models, "sd"), "a cat", "--source", tmp_path / "in.png", "--outpaint", "8,4,6,0", "--steps", 2, "--out", tmp_path / "out") == 0
    made = pixels(tmp_path / "out" / "000000.png")
    assert made.shape == (24, 44, 3)
    assert np.array_equal(made[4:24, 8:38], source)
    assert made[:4].std() > 1


def test_a_feathered_mask_falls_off_inside() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    mask = torch.zeros(1, 40, 40, dtype=torch.uint8)
    mask[:, 10:30, 10:40] = 255
    on = canvas(image, mask, (0, 0, 0, 0), 4, 8, 8)
    row = on.alpha[20]
    assert row[:10].eq(0).all() and row[10:15].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and row[15:].eq(1).all(), "not at the picture's border"
    assert on.mask[8:32, 8:40].all() and on.mask.sum() == 24 * 32, "whole cells"
    with pytest.raises(UserError, match="no white pixel"):
        canvas(image, torch.zeros_like(mask), (0, 0, 0, 0), 4, 8, 8)
    with pytest.raises(UserError, match="make them equal"):
        canvas(image, mask[:, :20], (0, 0, 0, 0), 4, 8, 8)


@pytest.mark.parametrize(("name", "kind"), [("ip2p", "StableDiffusionInstructPix2PixPipeline"), ("ip2p_xl", "StableDiffusionXLInstructPix2PixPipeline")])
def test_instructions_with_two_guidances(models: Path, tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, source = pipelines.folder(models, name), picture(tmp_path / "in.png")
    words = ("--source", tmp_path / "in.png", "--guidance", 6, "--image-guidance", 1.3, "--steps", 2, "--seed", 1)
    assert imagine(model, "make it snow", *words, "--out", tmp_path / "out") == 0
    expected = direct(model, kind, prompt="make it snow", image=source, guidance_scale=6.0, image_guidance_scale=1.3, num_inference_steps=2, seed=1,
                      **({"width": 32, "height": 32} if name == "ip2p_xl" else {}))
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert name != "ip2p_xl" or main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0
    assert imagine(model, "make it snow", "--out", tmp_path / "x") == 2
    assert "give --source IMG" in capsys.readouterr().err


def test_edges_are_those_of_an_independent_canny() -> None:
    feature = pytest.importorskip("skimage.feature")
    y, x = np.mgrid[:64, :64]
    disc = ((x - 31.5) ** 2 + (y - 31.5) ** 2 < 20**2).astype(np.float32)
    ours = edges(torch.from_numpy(disc * 255).to(torch.uint8).expand(3, -1, -1))[0].numpy() > 0
    theirs = feature.canny(disc, sigma=1.0)
    near = torch.nn.functional.max_pool2d(torch.from_numpy(theirs)[None, None].float(), 3, 1, 1)[0, 0].numpy() > 0
    assert ours.sum() > 80 and (near | ~ours).all(), "every edge lies within a pixel of one of theirs"
    assert abs(int(ours.sum()) - int(theirs.sum())) < 0.3 * theirs.sum()
