"""From the words of `pixelkiln imagine` to orders: prompts, styles, alternatives, settings side by side, walks."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import nearest
from ..core.errors import UserError

if TYPE_CHECKING:
    from ..pretrained.order import Order, Setup

__all__ = ["Plan", "area", "plan", "prompts_of", "seed_of", "setup_of", "sides"]

AXES: dict[str, Any] = {"steps": int, "guidance": float, "true_guidance": float, "image_guidance": float, "strength": float, "solver": str, "spacing": str}


@dataclass(frozen=True)
class Plan:
    """Orders row by row of a table, what stands below, above and beside them."""

    orders: list[Order]
    columns: int
    titles: list[str]
    heads: list[str]
    sides: list[str]


def area(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT, or one number for both."""
    parts = text.lower().split("x")
    try:
        found = [int(part) for part in (parts * 2 if len(parts) == 1 else parts)]
        if len(found) == 2 and all(8 <= n <= 16384 for n in found):
            return found[0], found[1]
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 512x768 or 512")


def seed_of(text: str) -> int:
    """A whole number from 0 to 2^63 - 1."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def sides(text: str) -> tuple[int, int, int, int]:
    """Pixels left, top, right, below; or one number for all four."""
    parts = text.split(",")
    if all(part.isascii() and part.isdigit() for part in parts) and len(parts) in (1, 4):
        left, top, right, below = (int(part) for part in (parts if len(parts) == 4 else parts * 4))
        if any((left, top, right, below)) and max(left, top, right, below) <= 8192:
            return left, top, right, below
    raise argparse.ArgumentTypeError(f"{text!r} is not LEFT,TOP,RIGHT,BELOW in pixels")


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The prompts of the command and of its file, with their alternatives written out."""
    from ..pretrained.prompts import alternatives, from_file

    found = [*args.prompt, *(from_file(args.prompts) if args.prompts else [])]
    if not found:
        raise UserError("no prompt: write it in quotes after the model, or give --prompts FILE")
    return [p for prompt in found for p in ([prompt] if args.literal else alternatives(prompt))]


def _axes(words: Sequence[str]) -> list[dict[str, Any]]:
    """All combinations of --vary NAME=V,V,..., the last changing fastest."""
    options = []
    for word in words:
        name, sign, values = word.partition("=")
        field = name.replace("-", "_")
        if not sign or field not in AXES or not values:
            raise UserError(f"--vary {word}: write NAME=VALUE,VALUE; {nearest(field, AXES)}")
        try:
            options.append([(field, AXES[field](value.strip())) for value in values.split(",")])
        except ValueError:
            raise UserError(f"--vary {word}: {name} takes numbers: write for instance {name}={'10,25' if field == 'steps' else '3,7.5'}") from None
    return [dict(choice) for choice in itertools.product(*options)]


def plan(args: argparse.Namespace) -> Plan:
    """The orders of the command. Errors: `UserError` for options that do not go together."""
    from ..pretrained.order import Order
    from ..pretrained.prompts import styled, wildcards

    width, height = args.size or (None, None)
    base = Order("", args.negative, args.seed, args.solver, args.spacing, args.steps, args.guidance, args.true_guidance, args.image_guidance, width, height,
                 args.strength, args.literal)
    contents = prompts_of(args)
    if args.frames:
        return _walk(args, base, contents)
    seeds = list(range(args.seed, args.seed + args.n))
    settings = _axes(args.vary)
    across = [(style, setting) for style in (args.style or [None]) for setting in settings]

    def order(content: str, seed: int, style: str | None, setting: dict[str, Any]) -> Order:
        text = styled(content, style) if style is not None else content
        text = text if args.literal else wildcards(text, seed, args.wildcards)
        return replace(base, prompt=text, seed=seed, **setting)

    if len(across) > 1:
        rows = [(content, seed) for content in contents for seed in seeds]
        orders = [order(content, seed, *column) for content, seed in rows for column in across]
        beside = [content if args.n == 1 else f"{content} (seed {seed})" for content, seed in rows]
        return Plan(orders, len(across), [], [_words(*column) for column in across], beside)
    orders = [order(content, seed, *across[0]) for content in contents for seed in seeds]
    if args.n > 1 and len(contents) > 1:
        return Plan(orders, args.n, [], [f"seed {seed}" for seed in seeds], contents)
    columns = min(len(orders), max(1, round(len(orders) ** 0.5 + 0.4999)))
    return Plan(orders, columns, [o.prompt if len(contents) > 1 else f"{o.prompt} (seed {o.seed})" for o in orders], [], [])


def _words(style: str | None, setting: dict[str, Any]) -> str:
    return ", ".join(([style] if style is not None else []) + [f"{name} {value}" for name, value in setting.items()])


def _walk(args: argparse.Namespace, base: Order, prompts: list[str]) -> Plan:
    """Frames along the prompts, equally many between each two."""
    from ..pretrained.order import Walk

    if len(prompts) < 2 and args.to_seed is None:
        raise UserError("--frames needs two prompts to go between, or --to-seed N: add one")
    if args.frames < 2 or args.n != 1 or args.style or args.vary:
        raise UserError("--frames takes at least 2, and neither -n nor --style nor --vary: leave those out")
    prompts = prompts * 2 if len(prompts) == 1 else prompts
    orders = []
    for i in range(args.frames):
        place = i * (len(prompts) - 1) / (args.frames - 1)
        k = min(int(place), len(prompts) - 2)
        t = place - k
        orders.append(replace(base, prompt=prompts[k], walk=Walk(prompts[k + 1], t, args.path, args.to_seed)))
    if args.to_seed is not None and len(prompts) > 2:
        raise UserError("--to-seed goes between two prompts: give two, or leave it out")
    return Plan(orders, args.frames, [], [], [])


def setup_of(args: argparse.Namespace) -> Setup:
    """Models, images and machine of the command. Errors: `UserError` for options that do not go together."""
    from ..pretrained.memory import choose_device, choose_precision
    from ..pretrained.order import Control, Guide, Lora, Setup

    if (args.mask or args.outpaint) and not args.source:
        raise UserError("--mask and --outpaint need the image that they are for: add --source IMG")
    if (args.mask or args.outpaint) and args.size:
        raise UserError("--size does not go with --mask or --outpaint, which keep the source's pixels: leave it out")
    controls = tuple(Control(model, image, *_each(args.control_weight, i, 1.0), *_each(args.control_interval, i, (0.0, 1.0)))
                     for i, (model, image) in enumerate(args.control))
    for name, given, count in (("--control-weight", args.control_weight, len(controls)), ("--control-interval", args.control_interval, len(controls)),
                               ("--ip-scale", args.ip_scale, len(args.ip_adapter))):
        if len(given) > count:
            raise UserError(f"{name} is given {len(given)} times for {count} of what it belongs to: leave some out")
    for control in controls:
        if control.end > 1:
            raise UserError("--control-interval is a share of the steps: write LO,HI between 0 and 1")
    guides = tuple(Guide(model, image, *_each(args.ip_scale, i, 1.0)) for i, (model, image) in enumerate(args.ip_adapter))
    device = choose_device(args.device)
    return Setup(args.model, args.variant, args.config, device, choose_precision(args.precision, device), args.memory, args.source, args.mask,
                 args.outpaint or (0, 0, 0, 0), args.feather, controls, tuple(Lora(*_lora(word)) for word in args.lora), guides, args.image_encoder,
                 args.safety, args.watermark)


def _each(values: Sequence[Any], i: int, default: Any) -> tuple[Any, ...]:
    """Value i of an option that may be given several times."""
    value = values[i] if i < len(values) else default
    return value if isinstance(value, tuple) else (value,)


def _lora(word: str) -> tuple[str, float]:
    """MODEL or MODEL=WEIGHT."""
    name, sign, weight = word.rpartition("=")
    if not sign or Path(word).exists():
        return word, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise UserError(f"--lora {word}: write MODEL or MODEL=WEIGHT, for instance style.safetensors=0.8") from None
