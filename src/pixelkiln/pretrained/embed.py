"""Prompts as embeddings, by the pipeline's own encoders: chunks for prompts that CLIP would cut, weights for tokens, walks between two prompts.

A weight w moves a token's embedding along the line from that of the empty prompt: e0 + w (e - e0). A long prompt is cut between words into chunks
that fit, each encoded by itself, and joined along the sequence; what is pooled comes from the first. Slerp is taken token by token:
sin((1 - t) a) / sin a * x + sin(t a) / sin a * y with the angle a between x and y (Shoemake, Animating rotation with quaternion curves, 1985),
and is a straight line where they are almost parallel.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import UserError
from .load import family
from .order import Order
from .prompts import Weighted, parse_weights

__all__ = ["embedded", "needs_embedding", "slerp"]

FOUR = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
NAMES: Mapping[str, tuple[str, ...]] = {
    "sd": FOUR[:2], "sdxl": FOUR, "sd3": FOUR, "flux": ("prompt_embeds", "pooled_prompt_embeds", ""), "pixart": MASKED, "sana": MASKED,
}
CHUNKED = ("sd", "sdxl", "sd3")
PARALLEL = 0.9995  # cosine beyond which slerp is lerp


class _Region(NamedTuple):
    """Where a tokenizer's tokens lie in the sequence of embeddings: first position, and length (0: to the end)."""

    tokenizer: str
    start: int
    length: int


def slerp(x: Tensor, y: Tensor, t: float, dim: int = -1) -> Tensor:
    """Between x (t = 0) and y (t = 1) along the sphere, over dimension `dim`; exactly x and y at the ends."""
    if t in (0, 1):
        return y if t else x
    a, b = x.double(), y.double()
    cos = (torch.nn.functional.normalize(a, dim=dim) * torch.nn.functional.normalize(b, dim=dim)).sum(dim, keepdim=True).clamp(-1, 1)
    angle = cos.clamp(-PARALLEL, PARALLEL).acos()
    curve = ((1 - t) * angle).sin() / angle.sin() * a + (t * angle).sin() / angle.sin() * b
    return torch.where(cos.abs() > PARALLEL, (1 - t) * a + t * b, curve).to(x.dtype)


def needs_embedding(pipe: Any, order: Order) -> bool:
    """Whether diffusers' own way with a prompt is not enough: it has weights, is longer than CLIP takes, or is on the way between two."""
    return order.walk is not None or any(_special(pipe, text, order.literal) for text in (order.prompt, order.negative))


def _special(pipe: Any, prompt: str, literal: bool) -> bool:
    weighted = parse_weights(prompt, literal)
    return not weighted.plain or weighted.text != prompt or (family(pipe) in CHUNKED and len(_chunks(pipe, weighted)) > 1)


def embedded(pipe: Any, order: Order, guided: bool) -> dict[str, Tensor]:
    """The arguments of the pipeline that stand for the order's prompts. guided: whether the negative prompt is used."""
    kind = family(pipe)
    if kind not in NAMES or not hasattr(pipe, "encode_prompt"):
        raise UserError(f"{type(pipe).__name__} takes plain prompts only: no weights, and no walk between prompts (--literal takes ( and ) as text)")
    texts = [parse_weights(order.prompt, order.literal), parse_weights(order.negative, order.literal)]
    ends = [texts[0]] + ([parse_weights(order.walk.to, order.literal)] if order.walk else [])
    count = max(len(_chunks(pipe, text)) for text in (*ends, texts[1])) if kind in CHUNKED else 1
    found = [_encoded(pipe, kind, end, texts[1], guided, count) for end in ends]
    if order.walk is None:
        return found[0]
    t, path = order.walk.t, order.walk.path
    if t in (0, 1):
        return found[int(t)]
    return {name: _between(found[0][name], found[1][name], t, path) for name in found[0]}


def _between(x: Tensor, y: Tensor, t: float, path: str) -> Tensor:
    if not x.is_floating_point():  # masks: a token counts where it does in one of the two
        return torch.maximum(x, y)
    return slerp(x, y, t) if path == "slerp" else ((1 - t) * x.double() + t * y.double()).to(x.dtype)


def _encoded(pipe: Any, kind: str, prompt: Weighted, negative: Weighted, guided: bool, count: int) -> dict[str, Tensor]:
    """Embeddings of a prompt and a negative one, in `count` chunks, with their weights."""
    positive_chunks, negative_chunks = ([*_chunks(pipe, w), *[Weighted("", ())] * count][:count] if kind in CHUNKED else [w] for w in (prompt, negative))
    parts = []
    for plus, minus in zip(positive_chunks, negative_chunks, strict=True):
        part = _call(pipe, kind, plus.text, minus.text if negative.text else None, guided, prompt.text, negative.text)
        if not (plus.plain and minus.plain):
            empty = _call(pipe, kind, "", "" if negative.text else None, guided, "", "")
            for name, text in (("prompt_embeds", plus), ("negative_prompt_embeds", minus)):
                if name in part and not text.plain:
                    part[name] = _weighted(pipe, kind, part[name], empty[name], text)
        parts.append(part)
    found = dict(parts[0])
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        if count > 1 and name in found:
            size = pipe.tokenizer.model_max_length if kind == "sd3" else found[name].shape[1]
            found[name] = torch.cat([p[name][:, :size] for p in parts] + [parts[0][name][:, size:]], dim=1)
    return found


def _call(pipe: Any, kind: str, prompt: str, negative: str | None, guided: bool, whole: str, whole_negative: str) -> dict[str, Tensor]:
    """What the pipeline's own encode_prompt gives; T5 of Stable Diffusion 3 sees the whole prompt, not the chunk."""
    known = inspect.signature(pipe.encode_prompt).parameters
    values: dict[str, Any] = {"prompt": prompt, "prompt_2": None, "device": pipe._execution_device, "num_images_per_prompt": 1,
                              "do_classifier_free_guidance": guided, "negative_prompt": negative, "clean_caption": False}
    if kind == "sd3":
        values |= {"prompt_3": whole or None, "negative_prompt_3": whole_negative or None}
    if kind == "sana":
        call = inspect.signature(type(pipe).__call__).parameters
        values["complex_human_instruction"] = call["complex_human_instruction"].default if "complex_human_instruction" in call else None
    if kind in ("flux", "pixart", "sana", "sd3"):
        values["max_sequence_length"] = inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default
    if kind == "pixart" or kind == "sana":
        values["negative_prompt"] = negative or ""
    with torch.no_grad():
        found = pipe.encode_prompt(**{name: value for name, value in values.items() if name in known})
    return {name: tensor for name, tensor in zip(NAMES[kind], found) if name and tensor is not None}


def _chunks(pipe: Any, weighted: Weighted) -> list[Weighted]:
    """The prompt cut between words into parts that CLIP takes whole; one part where it fits."""
    tokenizer = pipe.tokenizer
    room = tokenizer.model_max_length - 2  # beside the first and the last token

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, truncation=False).input_ids)

    if length(weighted.text) <= room:
        return [weighted]
    chunks, begin, used = [], 0, 0
    for start, end in _words(weighted.text):
        need = length(weighted.text[start:end])
        if used + need > room and used:
            chunks.append(Weighted(weighted.text[begin:start].strip(), _strip(weighted, begin, start)))
            begin, used = start, 0
        used += need
    chunks.append(Weighted(weighted.text[begin:].strip(), _strip(weighted, begin, len(weighted.text))))
    return chunks


def _words(text: str) -> Sequence[tuple[int, int]]:
    """Where the words begin and end."""
    found, start = [], None
    for i, c in enumerate(text + " "):
        if c.isspace() and start is not None:
            found.append((start, i))
            start = None
        elif not c.isspace() and start is None:
            start = i
    return found


def _strip(weighted: Weighted, start: int, end: int) -> tuple[float, ...]:
    """Weights of the characters between two places, those of outer spaces left out."""
    text = weighted.text[start:end]
    left = len(text) - len(text.lstrip())
    return weighted.weights[start + left : start + left + len(text.strip())]


def _weighted(pipe: Any, kind: str, embeds: Tensor, empty: Tensor, text: Weighted) -> Tensor:
    """e0 + w (e - e0) for tokens whose weight is not 1."""
    clip = _Region("tokenizer", 0, pipe.tokenizer.model_max_length)
    regions = {"sd": (clip,), "sdxl": (clip,), "sd3": (clip, _Region("tokenizer_3", clip.length, 0)), "flux": (_Region("tokenizer_2", 0, 0),),
               "pixart": (_Region("tokenizer", 0, 0),)}.get(kind)
    if regions is None:
        raise UserError(f"{type(pipe).__name__} takes no weights in its prompts: leave them out, or say --literal to have ( and ) as text")
    embeds = embeds.clone()
    for region in regions:
        tokenizer = getattr(pipe, region.tokenizer, None)
        if tokenizer is None:
            continue
        length = region.length or embeds.shape[1] - region.start
        source = text.text.lower().strip() if kind == "pixart" else text.text  # as that pipeline prepares it
        offsets = tokenizer(source, return_offsets_mapping=True, truncation=True, max_length=length).offset_mapping
        for position, (start, end) in enumerate(offsets):
            while start < end and source[start].isspace():
                start += 1
            w = text.weights[start] if end > start else 1.0
            if w != 1:
                at = region.start + position
                embeds[:, at] = empty[:, at] + w * (embeds[:, at] - empty[:, at])
    return embeds
