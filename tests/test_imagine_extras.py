"""What is loaded beside a pipeline: ControlNets, LoRA, IP-Adapters; images equal to those of diffusers called directly, or a refusal in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
import pipelines
from pipelines import controlnet, direct, imagine, picture, pixels, recipe
from pixelkiln.cli.main import main
from pixelkiln.pretrained.pictures import canvas, composite, edges

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_network")]
NET = {"sd": "ControlNetModel", "sdxl": "ControlNetModel", "sd3": "SD3ControlNetModel", "flux": "FluxControlNetModel"}
AUTO = {"text": "AutoPipelineForText2Image", "image": "AutoPipelineForImage2Image", "inpaint": "AutoPipelineForInpainting"}
WAYS = [("sd", "text", 1), ("sd", "image", 2), ("sd", "inpaint", 1), ("sdxl", "text", 1), ("sdxl", "text", 2), ("sdxl", "image", 1), ("sdxl", "inpaint", 2),
        ("sd3", "text", 1), ("sd3", "text", 2), ("flux", "text", 1), ("flux", "text", 2), ("flux", "image", 1), ("flux", "inpaint", 1)]


@pytest.mark.parametrize(("name", "way", "count"), WAYS)
def test_controls_with_weights_and_intervals(models: Path, tmp_path: Path, name: str, way: str, count: int) -> None:
    import diffusers

    model, nets = pipelines.folder(models, name), [controlnet(tmp_path / f"net{i}", i, name) for i in (1, 2)[:count]]
    source, maps = picture(tmp_path / "in.png"), [picture(tmp_path / f"map{i}.png", seed=i + 4) for i in range(count)]
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 10:26] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words: list[Any] = ["a cat", "--steps", 2, "--seed", 2] + (["--size", 32] if way == "text" else ["--source", tmp_path / "in.png", "--strength", 1.0])
    words += ["--mask", tmp_path / "mask.png"] if way == "inpaint" else []
    weights, intervals = (0.7, 0.4)[:count], ((0.0, 0.6), (0.3, 1.0))[:count]
    for i, net in enumerate(nets):
        words += ["--control", net, tmp_path / f"map{i}.png", "--control-weight", weights[i], "--control-interval", f"{intervals[i][0]},{intervals[i][1]}"]
    assert imagine(model, *words, "--out", tmp_path / "out") == 0

    loaded = [getattr(diffusers, NET[name]).from_pretrained(net) for net in nets]
    picked = lambda values: values[0] if count == 1 else list(values)
    field = "image" if way == "text" and name in ("sd", "sdxl") else "control_image"
    values = {"prompt": "a cat", "num_inference_steps": 2, "seed": 2, "width": 32, "height": 32, field: picked(maps),
              "control_guidance_start": picked([s for s, _ in intervals]), "control_guidance_end": picked([e for _, e in intervals])}
    on = canvas(torch.from_numpy(np.array(source)).permute(2, 0, 1), torch.from_numpy(mask)[None], (0, 0, 0, 0), 8, 8, 2)
    values |= {} if way == "text" else {"image": source, "strength": 1.0}
    values |= {"mask_image": Image.fromarray(on.mask.numpy())} if way == "inpaint" else {}

    def made(scale: float) -> Any:
        image = direct(model, AUTO[way], parts={"controlnet": picked(loaded)}, controlnet_conditioning_scale=picked([w * scale for w in weights]), **values)
        return composite(torch.from_numpy(image).permute(2, 0, 1), on).permute(1, 2, 0).numpy() if way == "inpaint" else image

    expected = made(1.0)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    if count == 1 and way == "text":
        assert not np.array_equal(expected, made(0.0)), "it acts"
    if (name, way) in (("sd3", "text"), ("flux", "inpaint")):
        assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


def test_controls_in_a_batch_and_edges_as_a_map(models: Path, tmp_path: Path) -> None:
    import diffusers

    model, source = pipelines.folder(models, "sd"), picture(tmp_path / "in.png", sharp=True)
    nets = [controlnet(tmp_path / f"net{i}", i) for i in (1, 2)]
    controls = ("--control", nets[0], f"edges:{tmp_path / 'in.png'}", "--control", nets[1], tmp_path / "in.png")
    assert imagine(model, "a cat", *controls, "--size", 32, "--steps", 2, "-n", 2, "--batch", 2, "--out", tmp_path / "out") == 0
    lines = Image.fromarray(edges(torch.from_numpy(np.array(source)).permute(2, 0, 1)).permute(1, 2, 0).numpy())
    assert np.array(lines).any()
    loaded = [diffusers.ControlNetModel.from_pretrained(n) for n in nets]
    expected = direct(model, parts={"controlnet": loaded}, prompt=["a cat"] * 2, image=[[lines] * 2, [source] * 2], num_inference_steps=2, seed=[0, 1], width=32, height=32,
                      controlnet_conditioning_scale=[1.0, 1.0])
    assert np.array_equal(pixels(tmp_path / "out" / "000001.png"), expected)
    assert main(["reproduce", str(tmp_path / "out" / "000001.png"), "--quiet"]) == 0


def test_what_has_no_controls_says_so_in_one_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, nets = picture(tmp_path / "in.png"), {name: controlnet(tmp_path / name, 1, name) for name in ("sd", "sd3", "flux")}
    source.convert("L").point(lambda v: 255).save(tmp_path / "mask.png")
    start, control = ("--source", tmp_path / "in.png"), lambda name: ("--control", nets[name], tmp_path / "in.png")
    for name, words, said in (("pixart", control("sd"), "cannot be opened for text to image with ControlNet"), ("sana", control("sd"), "cannot be opened for text to image"),
                              ("sd3", (*start, *control("sd3")), "cannot be opened for image to image with ControlNet"),
                              ("sd3", (*start, "--mask", tmp_path / "mask.png", *control("sd3")), "takes no --source"),
                              ("flux", (*start, *control("flux"), *control("flux")), "takes one --control with a --source"),
                              ("sd", ("--control", pipelines.folder(models, "sd") / "unet", tmp_path / "in.png"), "is no ControlNet")):
        assert imagine(pipelines.folder(models, name), "a cat", *words, "--out", tmp_path / "x") == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("name", "layers"), [("sd", ("attn2.to_q", "attn2.to_v")), ("sdxl", ("attn2.to_q",)), ("sd3", ("attn.to_q",)), ("flux", ("attn.to_q",))])
def test_lora(models: Path, tmp_path: Path, name: str, layers: tuple[str, ...]) -> None:
    pytest.importorskip("peft")
    model, part = pipelines.folder(models, name), "unet" if name in ("sd", "sdxl") else "transformer"
    net = pipelines.components(model)[part]
    for k, file in enumerate(("a", "b")):
        torch.manual_seed(3 + k)
        tensors = {}
        for path, layer in net.named_modules():
            if path.endswith(layers):
                tensors[f"{part}.{path}.lora_A.weight"] = torch.randn(4, layer.in_features)
                tensors[f"{part}.{path}.lora_B.weight"] = torch.randn(layer.out_features, 4)
        assert tensors
        save_file(tensors, tmp_path / f"{file}.safetensors")
    words = ("--lora", f"{tmp_path / 'a.safetensors'}=0.6", "--lora", tmp_path / "b.safetensors", "--steps", 2, "--size", 16)
    assert imagine(model, "a cat", *words, "--out", tmp_path / "out") == 0

    def prepare(pipe: Any) -> None:
        for file in ("a", "b"):
            pipe.load_lora_weights(tmp_path, weight_name=f"{file}.safetensors", adapter_name=file)
        pipe.set_adapters(["a", "b"], [0.6, 1.0])

    values = {"prompt": "a cat", "num_inference_steps": 2, "seed": 0, "width": 16, "height": 16}
    expected = direct(model, prepare=prepare, **values)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert not np.array_equal(expected, direct(model, **values))
    assert [x["weight"] for x in recipe(tmp_path / "out" / "000000.png")["setup"]["loras"]] == [0.6, 1.0]
    assert name != "flux" or main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


def adapter(model: Path, path: Path) -> Path:
    """An IP-Adapter for the pipeline's U-Net."""
    unet = pipelines.components(model)["unet"]
    torch.manual_seed(5)
    width = unet.config.cross_attention_dim
    tensors = {"image_proj.proj.weight": torch.randn(4 * width, 32), "image_proj.proj.bias": torch.randn(4 * width), "image_proj.norm.weight": torch.ones(width),
               "image_proj.norm.bias": torch.zeros(width)}
    number = 1
    for name in (n for n in unet.attn_processors if n.endswith("attn2.processor")):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("k", "v"):
            tensors[f"ip_adapter.{number}.to_{part}_ip.weight"] = torch.randn(attention.to_k.out_features, width)
        number += 2
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_ip_adapter(models: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, source = pipelines.folder(models, name), picture(tmp_path / "in.png")
    file = adapter(model, tmp_path / "adapter.safetensors")
    pipelines.image_encoder().save_pretrained(tmp_path / "encoder")
    words = ("--ip-adapter", file, tmp_path / "in.png", "--ip-scale", 0.7, "--steps", 2, "--size", 16)
    assert imagine(model, "a cat", *words, "--out", tmp_path / "x") == 2
    assert "--image-encoder" in capsys.readouterr().err
    assert imagine(model, "a cat", *words, "--image-encoder", tmp_path / "encoder", "--out", tmp_path / "out") == 0

    def prepare(pipe: Any) -> dict[str, Any]:
        from transformers import CLIPVisionModelWithProjection

        pipe.register_modules(image_encoder=CLIPVisionModelWithProjection.from_pretrained(tmp_path / "encoder"))
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(0.7)
        return {"ip_adapter_image": source}

    values = {"prompt": "a cat", "num_inference_steps": 2, "seed": 0, "width": 16, "height": 16}
    expected = direct(model, prepare=prepare, **values)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert not np.array_equal(expected, direct(model, **values))
    assert name != "sd" or main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart"])
def test_an_ip_adapter_of_other_classes_is_refused_in_one_line(models: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = adapter(pipelines.folder(models, "sd"), tmp_path / "adapter.safetensors")
    picture(tmp_path / "in.png")
    assert imagine(pipelines.folder(models, name), "a cat", "--ip-adapter", file, tmp_path / "in.png", "--out", tmp_path / "x") == 2
    err = capsys.readouterr().err
    assert "takes no IP-Adapter here" in err and err.count("\n") == 1
