"""Tiny random pipelines of every class, written as folders in the layout of the Hub; nothing is downloaded.

As diffusers' own tests build them: few channels, one or two layers, 5-token vocabularies made of bytes. Each class is built once a session.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pixelkiln.cli.main import main

SIZE = 32  # pixels a side of what U-Nets here make by default


def seeded(build: Any, *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return build(*args, **kwargs).eval()


def clip_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*letters, *(f"{c}</w>" for c in letters), "ca", "cat</w>", "re", "red</w>", "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")], model_max_length=77)


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:()!-"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), *((c, -3.0) for c in letters), ("▁red", -1.0), ("▁cat", -1.0)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    return GemmaTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])


def clip_text(width: int = 32, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    size = len(clip_tokenizer())
    config = CLIPTextConfig(bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1, hidden_size=width, intermediate_size=37,
                            num_attention_heads=4, num_hidden_layers=2, vocab_size=size, projection_dim=width, hidden_act="gelu")
    return seeded(CLIPTextModelWithProjection if projection else CLIPTextModel, config)


def t5(width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    return seeded(T5EncoderModel, T5Config(vocab_size=128, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0))


def vae(channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return seeded(AutoencoderKL, block_out_channels=[32, 64], in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2,
                  up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=channels, sample_size=SIZE, **more)


def unet(in_channels: int = 4, cross: int = 32, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return seeded(UNet2DConditionModel, block_out_channels=(32, 64), layers_per_block=1, sample_size=SIZE // 2, in_channels=in_channels, out_channels=4,
                  down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                  cross_attention_dim=cross, **more)


def betas(kind: str = "PNDMScheduler", **more: Any) -> Any:
    import diffusers

    if kind == "PNDMScheduler":
        more |= {"skip_prk_steps": True, "steps_offset": 1}
    return getattr(diffusers, kind)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **more)


def image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=SIZE, size={"shortest_edge": SIZE})


def safety_checker(flagged: bool) -> Any:
    """The check with thresholds that flag everything or nothing."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    text = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 99, "projection_dim": 16}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": SIZE, "patch_size": 8,
              "projection_dim": 16}
    checker = seeded(StableDiffusionSafetyChecker, CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    checker.concept_embeds_weights.data.fill_(-2.0 if flagged else 2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)
    return checker


def image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return seeded(CLIPVisionModelWithProjection, CLIPVisionConfig(hidden_size=32, projection_dim=32, intermediate_size=37, num_attention_heads=4,
                                                                  num_hidden_layers=2, image_size=SIZE, patch_size=8))


def sd(flagged: bool | None = False, **more: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    checker = None if flagged is None else safety_checker(flagged)
    return StableDiffusionPipeline(vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(), scheduler=betas(**more),
                                   safety_checker=checker, feature_extractor=image_processor(), requires_safety_checker=checker is not None)


def sd21() -> Any:
    """As 2.1: v-prediction, linear projections, no check."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(),
                                   unet=unet(use_linear_projection=True, attention_head_dim=(2, 4)),
                                   scheduler=betas("DDIMScheduler", prediction_type="v_prediction", steps_offset=1, clip_sample=False, set_alpha_to_one=False),
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def sd_inpaint() -> Any:
    from diffusers import StableDiffusionInpaintPipeline

    return StableDiffusionInpaintPipeline(vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(9), scheduler=betas(),
                                          safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def ip2p() -> Any:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    return StableDiffusionInstructPix2PixPipeline(vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(8),
                                                  scheduler=betas("EulerAncestralDiscreteScheduler"), safety_checker=None, feature_extractor=None,
                                                  requires_safety_checker=False)


def sdxl_unet(in_channels: int = 4) -> Any:
    return unet(in_channels, cross=96, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
                transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=112)


def sdxl() -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(vae=vae(), text_encoder=clip_text(), text_encoder_2=clip_text(64, True), tokenizer=clip_tokenizer(),
                                     tokenizer_2=clip_tokenizer(), unet=sdxl_unet(), scheduler=betas("EulerDiscreteScheduler", timestep_spacing="leading"),
                                     image_encoder=None, feature_extractor=None)


def ip2p_xl() -> Any:
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    return StableDiffusionXLInstructPix2PixPipeline(vae=vae(), text_encoder=clip_text(), text_encoder_2=clip_text(64, True), tokenizer=clip_tokenizer(),
                                                    tokenizer_2=clip_tokenizer(), unet=sdxl_unet(8), scheduler=betas("EulerDiscreteScheduler"))


def sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    net = seeded(SD3Transformer2DModel, sample_size=16, patch_size=1, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
                 caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=16)
    first = clip_text(16, True)
    torch.nn.init.eye_(first.text_projection.weight)  # as Stable Diffusion 3 has it
    return StableDiffusion3Pipeline(transformer=net, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(16, shift_factor=0.06, scaling_factor=1.53),
                                    text_encoder=first, tokenizer=clip_tokenizer(),
                                    text_encoder_2=clip_text(48, True), tokenizer_2=clip_tokenizer(), text_encoder_3=t5(64), tokenizer_3=t5_tokenizer())


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    net = seeded(FluxTransformer2DModel, patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                 joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8])
    return FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae(1, shift_factor=0.06, scaling_factor=1.53), text_encoder=clip_text(),
                        tokenizer=clip_tokenizer(), text_encoder_2=t5(), tokenizer_2=t5_tokenizer(), transformer=net)


def pixart() -> Any:
    from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

    net = seeded(PixArtTransformer2DModel, sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
                 in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
                 norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6)
    return PixArtSigmaPipeline(transformer=net, vae=vae(), scheduler=betas("DPMSolverMultistepScheduler"), text_encoder=t5(), tokenizer=t5_tokenizer())


def sana() -> Any:
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    net = seeded(SanaTransformer2DModel, patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
                 num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=8)
    codec = seeded(AutoencoderDC, in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
                   decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                   encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1),
                   decoder_layers_per_block=(1, 1), downsample_block_type="conv", upsample_block_type="interpolate",
                   decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407)
    text = seeded(Gemma2Model, Gemma2Config(head_dim=16, hidden_size=8, intermediate_size=64, max_position_embeddings=8192, num_attention_heads=2,
                                            num_hidden_layers=1, num_key_value_heads=2, vocab_size=400))
    return SanaPipeline(tokenizer=gemma_tokenizer(), text_encoder=text, vae=codec, transformer=net, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0))


def controlnet(path: Path, seed: int, kind: str = "sd") -> Path:
    """A ControlNet for the pipeline of that kind, whose last layers do something."""
    import diffusers

    torch.manual_seed(seed)
    if kind == "flux":
        net: Any = diffusers.FluxControlNetModel(patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                                                 joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8])
    elif kind == "sd3":
        net = diffusers.SD3ControlNetModel(sample_size=16, patch_size=1, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
                                           caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, out_channels=16)
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


BUILD = {"sd": sd, "sd_flagged": lambda: sd(flagged=True), "sd21": sd21, "sdxl": sdxl, "sd3": sd3, "flux": flux, "pixart": pixart, "sana": sana, "sd_inpaint": sd_inpaint, "ip2p": ip2p, "ip2p_xl": ip2p_xl}


@cache
def folder(base: Path, name: str) -> Path:
    """The folder of a pipeline under `base`, built if need be."""
    path = base / name
    BUILD[name]().save_pretrained(path, safe_serialization=True)
    return path


def imagine(*words: object) -> int:
    """The command, on the CPU."""
    return main(["imagine", *map(str, words), "--quiet", "--device", "cpu"])


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """An image file as (H, W, 3)."""
    return np.array(Image.open(path).convert("RGB"))


def recipe(path: Path) -> dict[str, Any]:
    """What the image says of itself."""
    return json.loads(Image.open(path).text["pixelkiln"])  # type: ignore[attr-defined]


def picture(path: Path, width: int = SIZE, height: int = SIZE, seed: int = 0, sharp: bool = False) -> Image.Image:
    """A random picture, smooth or of blocks, saved as PNG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST if sharp else Image.Resampling.BICUBIC)
    image.save(path)
    return image


@cache
def components(model: Path) -> dict[str, Any]:
    """The parts of a pipeline but its solver, opened once."""
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(model, use_safetensors=True)
    return {name: part for name, part in pipe.components.items() if part is not None and name != "scheduler"}


def direct(model: Path, auto: str = "AutoPipelineForText2Image", solver: str = "auto", prepare: Any = None, parts: Any = None, **values: Any) -> np.ndarray[Any, Any]:
    """The image that diffusers makes itself, without pixelkiln; the last one of several seeds. parts: arguments of from_pretrained; prepare: told the pipeline."""
    import diffusers

    pipe = getattr(diffusers, auto).from_pretrained(model, use_safetensors=True, **((components(model) if prepare is None else {}) | (parts or {})))
    if hasattr(pipe, "unet") and solver == "auto" and type(pipe.scheduler).__name__ != "EulerAncestralDiscreteScheduler":
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="dpmsolver++")
    elif solver not in ("auto", "own"):
        pipe.scheduler = getattr(diffusers, solver).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if "seed" in values:
        seeds = values.pop("seed")
        torch.manual_seed(seeds[0] if isinstance(seeds, list) else seeds)  # Stable Diffusion 3 draws latents of control maps without a generator
        values["generator"] = [torch.Generator().manual_seed(s) for s in (seeds if isinstance(seeds, list) else [seeds])]
    if model.name in ("pixart", "sana"):
        values |= {"use_resolution_binning": False, "clean_caption": False}
    values |= prepare(pipe) or {} if prepare else {}
    return np.array(pipe(**values).images[-1])
