"""Images from images: image to image, inpainting, outpainting, instructions, ControlNet, IP-Adapter, LoRA; equal to diffusers called directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
import pipelines
from pipelines import direct, imagine, picture, pixels, recipe
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
    assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


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
    assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


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


def test_instructions_with_two_guidances(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    model, source = pipelines.folder(models, "ip2p"), picture(tmp_path / "in.png")
    words = ("--source", tmp_path / "in.png", "--guidance", 6, "--image-guidance", 1.3, "--steps", 3, "--seed", 1)
    assert imagine(model, "make it snow", *words, "--out", tmp_path / "out") == 0
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(model, safety_checker=None)
    expected = pipe("make it snow", image=source, guidance_scale=6.0, image_guidance_scale=1.3, num_inference_steps=3,
                    generator=[torch.Generator().manual_seed(1)]).images[0]
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), np.array(expected))
    assert imagine(model, "make it snow", "--out", tmp_path / "x") == 2
    assert "give --source IMG" in capsys.readouterr().err


def controlnet(path: Path, seed: int, kind: str = "sd") -> Path:
    import diffusers

    torch.manual_seed(seed)
    if kind == "flux":
        net: Any = diffusers.FluxControlNetModel(patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                                                 joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8])
    else:
        more = {} if kind == "sd" else {"attention_head_dim": (2, 4), "use_linear_projection": True, "addition_embed_type": "text_time",
                                        "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2), "projection_class_embeddings_input_dim": 112}
        net = diffusers.ControlNetModel(block_out_channels=(32, 64), layers_per_block=1, in_channels=4, cross_attention_dim=32 if kind == "sd" else 96,
                                        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), conditioning_embedding_out_channels=(16, 32), **more)
    for p in net.parameters():
        if float(p.abs().max()) == 0:
            torch.nn.init.normal_(p, std=0.3)  # else the zero convolutions do nothing
    net.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_one_control_with_weight_and_interval(models: Path, tmp_path: Path, name: str) -> None:
    import diffusers

    model, net = pipelines.folder(models, name), controlnet(tmp_path / "net", 1, name)
    source = picture(tmp_path / "in.png", sharp=True)
    words = ("--control", net, f"edges:{tmp_path / 'in.png'}", "--control-weight", 0.7, "--control-interval", "0,0.6", "--size", 32, "--steps", 3)
    assert imagine(model, "a cat", *words, "-n", 2, "--batch", 2, "--out", tmp_path / "two") == 0
    assert imagine(model, "a cat", *words, "--out", tmp_path / "out") == 0
    lines = Image.fromarray(edges(torch.from_numpy(np.array(source)).permute(2, 0, 1)).permute(1, 2, 0).numpy())
    assert np.array(lines).any()
    control = diffusers.ControlNetModel.from_pretrained(net)
    values = {"prompt": "a cat", "image": lines, "num_inference_steps": 3, "seed": 0, "width": 32, "height": 32}
    expected = direct(model, parts={"controlnet": control}, controlnet_conditioning_scale=0.7, control_guidance_end=0.6, **values)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert not np.array_equal(expected, direct(model, parts={"controlnet": control}, controlnet_conditioning_scale=0.0, **values))
    assert np.abs(pixels(tmp_path / "two" / "000000.png").astype(int) - expected).max() <= 1
    assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


def test_several_controls_and_controls_with_a_source(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import diffusers

    model, source = pipelines.folder(models, "sd"), picture(tmp_path / "in.png")
    other = picture(tmp_path / "depth.png", seed=4)
    nets = [controlnet(tmp_path / f"net{i}", i) for i in (1, 2)]
    words = ("--control", nets[0], tmp_path / "in.png", "--control", nets[1], tmp_path / "depth.png", "--control-weight", 0.5, "--control-weight", 0.8,
             "--control-interval", "0,1", "--control-interval", "0.3,1", "--steps", 3)
    assert imagine(model, "a cat", *words, "--size", 32, "--out", tmp_path / "out") == 0
    loaded = [diffusers.ControlNetModel.from_pretrained(n) for n in nets]
    more = {"controlnet_conditioning_scale": [0.5, 0.8], "control_guidance_start": [0.0, 0.3], "control_guidance_end": [1.0, 1.0]}
    expected = direct(model, parts={"controlnet": loaded}, prompt="a cat", image=[source, other], num_inference_steps=3, seed=0, width=32, height=32, **more)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert imagine(model, "a cat", *words, "--source", tmp_path / "in.png", "--strength", 0.7, "--out", tmp_path / "both") == 0
    expected = direct(model, "AutoPipelineForImage2Image", parts={"controlnet": loaded}, prompt="a cat", image=source, control_image=[source, other], strength=0.7,
                      num_inference_steps=3, seed=0, width=32, height=32, **more)
    assert np.array_equal(pixels(tmp_path / "both" / "000000.png"), expected)
    assert imagine(model, "a", "--control", model / "unet", tmp_path / "in.png", "--out", tmp_path / "x") == 2
    assert "is no ControlNet" in capsys.readouterr().err


def test_control_of_flux(models: Path, tmp_path: Path) -> None:
    import diffusers

    model, net, source = pipelines.folder(models, "flux"), controlnet(tmp_path / "net", 1, "flux"), picture(tmp_path / "in.png")
    assert imagine(model, "a cat", "--control", net, tmp_path / "in.png", "--size", 32, "--steps", 2, "--out", tmp_path / "out") == 0
    expected = direct(model, parts={"controlnet": diffusers.FluxControlNetModel.from_pretrained(net)}, prompt="a cat", control_image=source, width=32, height=32,
                      num_inference_steps=2, seed=0, controlnet_conditioning_scale=1.0)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)


def test_edges_are_those_of_an_independent_canny() -> None:
    feature = pytest.importorskip("skimage.feature")
    y, x = np.mgrid[:64, :64]
    disc = ((x - 31.5) ** 2 + (y - 31.5) ** 2 < 20**2).astype(np.float32)
    ours = edges(torch.from_numpy(disc * 255).to(torch.uint8).expand(3, -1, -1))[0].numpy() > 0
    theirs = feature.canny(disc, sigma=1.0)
    near = torch.nn.functional.max_pool2d(torch.from_numpy(theirs)[None, None].float(), 3, 1, 1)[0, 0].numpy() > 0
    assert ours.sum() > 80 and (near | ~ours).all(), "every edge lies within a pixel of one of theirs"
    assert abs(int(ours.sum()) - int(theirs.sum())) < 0.3 * theirs.sum()


def test_lora(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from safetensors.torch import save_file

    model = pipelines.folder(models, "sd")
    torch.manual_seed(3)
    tensors = {}
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    for name, layer in unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_v")):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(4, layer.in_features)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 4)
    assert tensors
    save_file(tensors, tmp_path / "style.safetensors")
    assert imagine(model, "a cat", "--lora", f"{tmp_path / 'style.safetensors'}=0.6", "--steps", 2, "--out", tmp_path / "out") == 0

    def prepare(pipe: Any) -> None:
        pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="x")
        pipe.set_adapters(["x"], [0.6])

    expected = direct(model, prepare=prepare, prompt="a cat", num_inference_steps=2, seed=0)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert not np.array_equal(expected, direct(model, prompt="a cat", num_inference_steps=2, seed=0))
    assert recipe(tmp_path / "out" / "000000.png")["setup"]["loras"] == [{"model": str(tmp_path / "style.safetensors"), "weight": 0.6}]
    assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


def test_ip_adapter(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import diffusers
    from safetensors.torch import save_file

    model, source = pipelines.folder(models, "sd"), picture(tmp_path / "in.png")
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    torch.manual_seed(5)
    tensors = {"image_proj.proj.weight": torch.randn(4 * 32, 32), "image_proj.proj.bias": torch.randn(4 * 32), "image_proj.norm.weight": torch.ones(32),
               "image_proj.norm.bias": torch.zeros(32)}
    layers = [m for n, m in unet.named_modules() if n.endswith("attn2")]
    order = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    assert len(order) == len(layers)
    for i, name in enumerate(order):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("k", "v"):
            tensors[f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight"] = torch.randn(attention.to_k.out_features, 32)
    save_file(tensors, tmp_path / "adapter.safetensors")
    pipelines.image_encoder().save_pretrained(tmp_path / "encoder")
    words = ("--ip-adapter", tmp_path / "adapter.safetensors", tmp_path / "in.png", "--ip-scale", 0.7, "--steps", 2)
    assert imagine(model, "a cat", *words, "--out", tmp_path / "x") == 2
    assert "--image-encoder" in capsys.readouterr().err
    assert imagine(model, "a cat", *words, "--image-encoder", tmp_path / "encoder", "--out", tmp_path / "out") == 0

    def prepare(pipe: Any) -> dict[str, Any]:
        from transformers import CLIPVisionModelWithProjection

        pipe.register_modules(image_encoder=CLIPVisionModelWithProjection.from_pretrained(tmp_path / "encoder"))
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(0.7)
        return {"ip_adapter_image": source}

    expected = direct(model, prepare=prepare, prompt="a cat", num_inference_steps=2, seed=0)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert not np.array_equal(expected, direct(model, prompt="a cat", num_inference_steps=2, seed=0))
    assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0
