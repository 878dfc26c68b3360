"""What is asked for: `Order` is all that makes one image, `Setup` what the images of one command share. Both are JSON and go into the image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["Control", "Guide", "Lora", "Order", "Setup", "Walk", "batches"]

Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Walk:
    """A point between two prompts: `t` of the way, 0 to 1, to the prompt `to`; noise of the seed, or between it and `to_seed`."""

    to: str
    t: float
    path: Literal["slerp", "lerp"] = "slerp"
    to_seed: int | None = None


@dataclass(frozen=True)
class Order:
    """One image. None: as the pipeline has it. literal: parentheses in the prompt are no weights. strength: how far the source is re-noised."""

    prompt: str
    negative: str = ""
    seed: int = 0
    solver: str = "auto"
    spacing: str = "model"
    steps: int | None = None
    guidance: float | None = None
    true_guidance: float | None = None
    image_guidance: float | None = None
    width: int | None = None
    height: int | None = None
    strength: float | None = None
    literal: bool = False
    walk: Walk | None = None

    def shared(self) -> Order:
        """Without what may differ within a batch."""
        return replace(self, prompt="", seed=0, walk=None)


@dataclass(frozen=True)
class Control:
    """A ControlNet: its model, the map (a file, or edges:FILE to compute it), its weight, and the share of the steps in which it acts."""

    model: str
    image: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Lora:
    """Low-rank additions to the weights: a .safetensors file or owner/name[/file] on the Hub."""

    model: str
    weight: float = 1.0


@dataclass(frozen=True)
class Guide:
    """An IP-Adapter (a .safetensors file, or owner/name/folder/file on the Hub) and the image that prompts through it."""

    model: str
    image: str
    scale: float = 1.0


@dataclass(frozen=True)
class Setup:
    """Models, machine and images of the user's that all images of a command share. outpaint: pixels added left, top, right, below."""

    model: str
    variant: str = ""
    config: str = ""
    device: str = "cpu"
    precision: Precision = "fp32"
    memory: str = "auto"
    source: str = ""
    mask: str = ""
    outpaint: tuple[int, int, int, int] = (0, 0, 0, 0)
    feather: int = 8
    controls: tuple[Control, ...] = ()
    loras: tuple[Lora, ...] = ()
    guides: tuple[Guide, ...] = field(default=())
    image_encoder: str = ""
    safety: Literal["blank", "record", "off"] = "blank"
    watermark: Literal["auto", "on", "off"] = "auto"

    @property
    def task(self) -> Literal["text", "image", "inpaint"]:
        """What kind of pipeline this needs."""
        if self.mask or any(self.outpaint):
            return "inpaint"
        return "image" if self.source else "text"


def batches(orders: list[Order], size: int, alone: list[bool]) -> list[list[int]]:
    """Numbers of the orders that are computed together: neighbors with the same settings, up to `size`; those that must be `alone` are."""
    found: list[list[int]] = []
    for i, order in enumerate(orders):
        last = found[-1] if found else []
        fits = last and len(last) < size and not (alone[i] or alone[last[0]]) and orders[last[0]].shared() == order.shared()
        if fits:
            last.append(i)
        else:
            found.append([i])
    return found
