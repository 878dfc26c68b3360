"""Optimisers from plain configs, learning rates as functions of the step, and optimiser state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.recipe import OptConfig
from ..core.types import Moment, UserError
from .muon import Muon

__all__ = ["build", "lr_at", "pack", "settle", "tables", "unpack"]


def build(config: OptConfig, parameters: Iterable[nn.Parameter], names: Sequence[str] = (), tables: Collection[str] = ()) -> torch.optim.Optimizer:
    """The optimiser, fused where the device has it. names: of the parameters, for what `config.adam` says of them; tables: those that are Adam's anyway."""
    params = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") for p in params)
    if config.kind == "sgd":
        return torch.optim.SGD(params, config.lr, momentum=config.betas[0], weight_decay=config.weight_decay, fused=fused)
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(params, config.lr, alpha=config.betas[1], eps=config.eps, weight_decay=config.weight_decay, momentum=config.betas[0])
    if config.kind == "muon":
        return Muon(_parted(config, params, names, tables), config.lr, config.betas, config.eps, config.weight_decay)
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(params, config.lr, config.betas, config.eps, config.weight_decay, fused=fused)


def tables(net: nn.Module) -> list[str]:
    """The weights of a net that are looked up by number: classes, words, codes. A step sees a few of their rows, and no two rows belong together."""
    return [f"{name}.weight" for name, part in net.named_modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)]


def _parted(config: OptConfig, params: Sequence[nn.Parameter], names: Sequence[str], tables: Collection[str]) -> list[dict[str, Any]]:
    """The groups of Muon: what it takes, and what is Adam's by name, if any. UserError for a name that no parameter has."""
    for part in config.adam:
        if not any(_within(name, part) for name in names):
            raise UserError(f"adam: {part!r} is no part of the nets: they have {', '.join(dict.fromkeys('.'.join(n.split('.')[:2]) for n in names))}")
    named = [name in tables or any(_within(name, part) for part in config.adam) for name in names] or [False] * len(params)
    groups = [{"params": [p for p, adam in zip(params, named, strict=True) if adam == side], "adam": side} for side in (False, True)]
    return [g for g in groups if g["params"]]


def _within(name: str, part: str) -> bool:
    """Whether a parameter is the part, or in it."""
    return name == part or name.startswith(f"{part}.")


def lr_at(config: OptConfig, moment: Moment) -> float:
    """Learning rate of a step: linear warm-up over `warmup` of the run, then constant, or down to final * lr by cosine or line.

    With p = step / total and u = (p - warmup) / (1 - warmup): cosine: f + (1 - f)(1 + cos(pi u))/2; linear: 1 - (1 - f) u.
    """
    begin = config.warmup * moment.total
    if moment.step < begin:
        return config.lr * (moment.step + 1) / math.ceil(begin)
    u = (moment.step - begin) / max(moment.total - begin, 1)
    if config.decay == "cosine":
        return config.lr * (config.final + (1 - config.final) * (1 + math.cos(math.pi * u)) / 2)
    if config.decay == "linear":
        return config.lr * (1 - (1 - config.final) * u)
    return config.lr


@torch.no_grad()
def settle(opts: Mapping[str, torch.optim.Optimizer]) -> None:
    """Moments below 1e-37 become 0, which changes no weight: beside Adam's eps they are nothing.

    The moment of a weight that gets no more gradients (behind a dead ReLU, say) shrinks below 1e-38 and stays there for ever, since the smallest
    numbers round to themselves; a processor takes 19 times as long for them (fused Adam, 650,000 weights, one thread of a Xeon: 8.6 ms against
    0.45). After 1,000 steps of `vae-mlp` on MNIST they were 4 % of all moments.
    """
    for opt in opts.values():
        for state in opt.state.values():
            for name in ("exp_avg", "exp_avg_sq", "square_avg", "momentum_buffer"):
                if isinstance(moment := state.get(name), Tensor):
                    moment.copy_(nn.functional.hardshrink(moment, 1e-37))


def pack(opts: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of all optimisers as named tensors: '<optimiser>.<parameter number>.<state name>'."""
    found = {}
    for name, opt in opts.items():
        for i, state in opt.state_dict()["state"].items():
            for kind, value in state.items():
                if value is not None:
                    found[f"{name}.{i}.{kind}"] = torch.as_tensor(value)
    return found


def unpack(opts: Mapping[str, torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Give the optimisers the state that `pack` took. ValueError where a weight's state is another weight's, or another rule's (Muon's momentum, Adam's moments)."""
    params = {name: [p for g in opt.param_groups for p in g["params"]] for name, opt in opts.items()}
    states: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in opts}
    for key, value in tensors.items():
        name, i, kind = key.rsplit(".", 2)
        like = params[name][int(i)]  # fused kernels walk memory, so a moment must lie as its parameter does (channels-last, say)
        if value.ndim and value.shape != like.shape:
            raise ValueError(f"{key} is {tuple(value.shape)}, its weight {tuple(like.shape)}")
        own = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value.clone()
        states[name].setdefault(int(i), {})[kind] = own
    for name, opt in opts.items():
        if isinstance(opt, Muon):
            for number, state in states[name].items():
                if ("momentum_buffer" in state) != opt.takes(params[name][number]):
                    raise ValueError(f"{name}.{number} has the state of {'Muon' if 'momentum_buffer' in state else 'Adam'}, and is the other's now")
        opt.load_state_dict({"state": states[name], "param_groups": opt.state_dict()["param_groups"]})
