"""Pipelines as one file, with the names that their authors gave the tensors: Stable Diffusion 1 and XL (as in latent-diffusion), 3 (as in its reference code).

The reverse of what diffusers does to such a file, written from the two lists of names; diffusers has it as scripts, outside of the package.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["save_single"]

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
          "conv_shortcut": "skip_connection"}
OUTER = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
         "add_embedding.linear_2": "label_emb.0.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
VAE = ((r"down_blocks\.(\d+)\.resnets", r"down.\1.block"), (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"), (r"mid_block\.attentions\.0", "mid.attn_1"),
       ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"), (r"to_out\.0", "proj_out"), (r"to_([qkv])\.", r"\1."))
OPEN = ((r"text_model\.final_layer_norm", "ln_final"), ("layer_norm", "ln_"), (r"\.fc1", ".c_fc"), (r"\.fc2", ".c_proj"), (r"text_model\.encoder\.layers", "transformer.resblocks"), (r"self_attn", "attn"),
        (r"text_model\.embeddings\.token_embedding", "token_embedding"),
        (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"))
SD3 = (("pos_embed.proj", "x_embedder.proj"), ("pos_embed.pos_embed", "pos_embed"), ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
       ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"), ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
       ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"), ("proj_out", "final_layer.linear"), ("norm_out.linear", "final_layer.adaLN_modulation.1"))
JOINT = (("attn.to_out.0", "x_block.attn.proj"), ("attn.to_add_out", "context_block.attn.proj"), ("ff_context.net.0.proj", "context_block.mlp.fc1"),
         ("ff_context.net.2", "context_block.mlp.fc2"), ("norm1.linear", "x_block.adaLN_modulation.1"), ("norm1_context.linear", "context_block.adaLN_modulation.1"),
         ("ff.net.0.proj", "x_block.mlp.fc1"), ("ff.net.2", "x_block.mlp.fc2"))

State = dict[str, Tensor]


def replaced(name: str, table: Any) -> str:
    for old, new in table:
        name = re.sub(old, new, name)
    return name


def unet(state: State, layers: int) -> State:
    """A U-Net with so many layers a block."""
    found = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        parts = name.split(".")
        if head in ("down_blocks", "up_blocks"):
            block, kind, layer = int(parts[1]), parts[2], int(parts[3])
            last = ".".join(parts[4:])
            at, group = block * (layers + 1) + layer, "input_blocks" if head == "down_blocks" else "output_blocks"
            at += head == "down_blocks"
            if kind == "downsamplers":
                new = f"{group}.{(block + 1) * (layers + 1)}.0.{last.replace('conv', 'op')}"
            elif kind == "upsamplers":
                attended = any(n.startswith(f"up_blocks.{block}.attentions") for n in state)
                new = f"{group}.{block * (layers + 1) + layers}.{2 if attended else 1}.{last}"
            else:
                new = f"{group}.{at}.{0 if kind == 'resnets' else 1}.{last}"
        elif head == "mid_block":
            new = f"middle_block.{1 if parts[1] == 'attentions' else 2 * int(parts[2])}.{'.'.join(parts[3:])}"
        else:
            stem, _, end = name.rpartition(".")
            new = f"{OUTER[stem]}.{end}"
        if ".resnets." in name:
            new = replaced(new, [(rf"\b{old}\b", new_name) for old, new_name in RESNET.items()])
        found[new] = tensor
    return found


def vae(state: State) -> State:
    count = len({n.split(".")[2] for n in state if n.startswith("decoder.up_blocks")})
    found = {}
    for name, tensor in state.items():
        new = replaced(name, VAE)
        new = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{count - 1 - int(m[1])}.", new)
        new = new.replace("resnets", "block").replace("upsamplers.0", "upsample")
        new = re.sub(r"mid_block\.block\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        conv = ".mid.attn_1." in new and tensor.ndim == 2
        found[new] = tensor[:, :, None, None] if conv else tensor
    return found


def clip(model: Any) -> State:
    """As in transformers, whatever its version calls the outermost."""
    return {n if n.startswith("text_") else f"text_model.{n}": t for n, t in model.state_dict().items() if "position_ids" not in n}


def open_clip(model: Any) -> State:
    found: State = {}
    state = clip(model)
    for name, tensor in state.items():
        new = replaced(name, OPEN)
        if "_proj.weight" in name and "self_attn.q" in name or "_proj.bias" in name and "self_attn.q" in name:
            found[new.replace(".q_proj.", ".in_proj_")] = torch.cat([state[name.replace(".q_proj", f".{x}_proj")] for x in "qkv"])
        elif not re.search(r"self_attn\.[kv]_proj", name):
            found["text_projection" if name == "text_projection.weight" else new] = tensor.T if name == "text_projection.weight" else tensor
    return found


def joint(state: State) -> State:
    """The transformer of Stable Diffusion 3."""
    swap = lambda t: torch.cat(t.chunk(2)[::-1])
    last = max(int(n.split(".")[1]) for n in state if n.startswith("transformer_blocks."))
    found = {}
    for name, tensor in state.items():
        if name.startswith("transformer_blocks."):
            i = int(name.split(".")[1])
            block = f"transformer_blocks.{i}."
            inner, end = name.removeprefix(block).rsplit(".", 1)
            if inner in ("attn.to_q", "attn.add_q_proj"):
                pick = "attn.to_{}" if inner == "attn.to_q" else "attn.add_{}_proj"
                where = "x_block" if inner == "attn.to_q" else "context_block"
                found[f"joint_blocks.{i}.{where}.attn.qkv.{end}"] = torch.cat([state[f"{block}{pick.format(x)}.{end}"] for x in "qkv"])
            elif (new := dict(JOINT).get(inner)) is not None:
                found[f"joint_blocks.{i}.{new}.{end}"] = swap(tensor) if inner == "norm1_context.linear" and i == last else tensor
            else:
                assert re.search(r"to_[kv]|add_[kv]", inner), name
            continue
        new = next((name.replace(old, fresh) for old, fresh in SD3 if name.startswith(old)), name)
        found[new] = swap(tensor) if name.startswith("norm_out") else tensor
    return found


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def save_single(kind: str, parts: dict[str, Any], path: Path) -> Path:
    """The models of a pipeline of class `kind` as one file in their authors' names."""
    found = under("first_stage_model.", vae(parts["vae"].state_dict()))
    if kind.startswith("StableDiffusion3"):
        found |= under("model.diffusion_model.", joint(parts["transformer"].state_dict()))
        found |= under("text_encoders.clip_l.transformer.", {n: t for n, t in clip(parts["text_encoder"]).items() if n != "text_projection.weight"})
        found |= under("text_encoders.clip_g.transformer.", clip(parts["text_encoder_2"]))
        found |= under("text_encoders.t5xxl.transformer.", parts["text_encoder_3"].state_dict())
    else:
        found |= under("model.diffusion_model.", unet(parts["unet"].state_dict(), parts["unet"].config.layers_per_block))
        if "XL" in kind:
            found |= under("conditioner.embedders.0.transformer.", clip(parts["text_encoder"]))
            found |= under("conditioner.embedders.1.model.", open_clip(parts["text_encoder_2"]))
        else:
            found |= under("cond_stage_model.transformer.", clip(parts["text_encoder"]))
    save_file({name: tensor.clone().contiguous() for name, tensor in found.items()}, path)
    return path
