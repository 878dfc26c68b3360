"""A toy data set, toy methods with few or all abilities, and a strict reader of HTML, for the tests of the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pixelkiln.core.images import grid
from pixelkiln.core.protocols import Codec, Denoiser, Latent, Method
from pixelkiln.core.rng import noise, streams
from pixelkiln.core.types import Ability, Condition, DataInfo, ImageShape, Request, UserError
from pixelkiln.engine.report import ReportContext

__all__ = ["CLASSES", "Corners", "Demanding", "Editor", "Everything", "Page", "Plain", "Set", "context", "data"]

CLASSES = ("zero <em>", 'one "&"', "two")
VOID = {"img", "meta", "line", "polyline", "circle", "br"}


@dataclass(frozen=True)
class Set:
    images: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    name: str
    split: str


class Plain(Method):
    """Gaussian images around a brightness by class; counts what is asked of it."""

    abilities = frozenset({Ability.LABEL})

    def __init__(self, info: DataInfo) -> None:
        super().__init__(info)
        self.net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        self.drawn = 0
        self.asked: list[Request] = []

    def draw(self, request: Request) -> Tensor:
        assert not self.net[1].training and not torch.is_grad_enabled()
        self.drawn += len(request.seeds)
        self.asked.append(request)
        z = 0.2 * noise(streams(request.seeds, "toy"), tuple(self.shape))
        torch.rand(1)  # a careless method that uses the global generator
        return z if request.cond.label is None else z + (request.cond.label.view(-1, 1, 1, 1) - 1.0) * 0.5


class Everything(Plain, Codec, Denoiser, Latent):
    """All protocols; ten solver steps, with estimates that fade in."""

    sigma_range = (0.01, 10.0)

    def draw(self, request: Request) -> Tensor:
        x = super().draw(request)
        if request.callback is not None:
            for i in range(10):
                request.callback(i, 10, x * i / 9)
        return x

    def encode(self, x: Tensor) -> Tensor:
        assert not self.net[1].training and not torch.is_grad_enabled()
        return x.mean((1, 2, 3))

    def decode(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 1, 1).expand(-1, *self.shape)

    def denoise(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        return x

    def sigmas(self, steps: int, solver: str) -> Tensor:
        return torch.linspace(10, 0, steps + 1, dtype=torch.float64)

    def latents(self, seeds: Sequence[int]) -> Tensor:
        return noise(streams(seeds, "latent"), tuple(self.shape))

    def from_latents(self, z: Tensor, request: Request) -> Tensor:
        assert not torch.is_grad_enabled()
        self.drawn += len(z)
        return z


class Editor(Plain):
    """Brightens its source."""

    abilities = frozenset({Ability.SOURCE, Ability.STRENGTH})

    def draw(self, request: Request) -> Tensor:
        if request.cond.source is None:
            raise UserError("give a source")
        return super().draw(request) * 0 + request.cond.source + 0.5


class Demanding(Plain):
    """Needs a text that a report does not have."""

    def draw(self, request: Request) -> Tensor:
        raise UserError("give a <text> with --text")


class Corners:
    """Features that are two pixels."""

    def features(self, images: Tensor, /) -> Tensor:
        return images[:, 0, 0, :2].float()

    def features_of(self, data: Set, rows: Tensor | None = None, /) -> Tensor:
        return self.features(data.images if rows is None else data.images[rows])


def data(split: str, n: int) -> Set:
    gen = torch.Generator().manual_seed(n)
    return Set(torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=gen), torch.arange(n) % 3, CLASSES, "toy <i>set</i>", split)


def context(kind: type[Plain] = Everything, **changes: object) -> ReportContext:
    torch.manual_seed(0)
    records = [{"step": k, "d/loss": 1 / k, "g/loss": 2.0, "lr": 1e-3, "images_per_s": 100.0, "note": "text"} for k in range(1, 30)]
    protocol = {"extractor": "classifier <a>", "N": 2000, "seed": 0}
    evaluation = {
        "metrics": [
            {"name": "fd", "value": 12.3456789, "better": "lower", "floor": 1.5, "protocol": protocol, "error": 0.123},
            {"name": "precision", "value": 0.75, "better": "higher", "floor": None, "protocol": {**protocol, "k": 3}, "error": None, "interval": None},
            {"name": "recall", "value": 0.5, "better": "higher", "floor": None, "protocol": protocol, "error": 0.02, "interval": [0.4512, 0.551]},
        ],
        "warnings": ["fewer samples than <features>"],
    }
    facts = {"recipe": "toy<script>", "paper": "A & B, arXiv 1234.5678", "command": "train 'x' <y>", "steps": "30"}
    base = ReportContext(
        method=kind(DataInfo(ImageShape(1, 8, 8), CLASSES)),
        train=data("train", 300),
        test=data("test <u>", 40),
        facts=facts,
        records=records,
        history=[(k, grid(data("train", 4).images)) for k in range(0, 1200, 100)],
        evaluation=evaluation,
        extractor=Corners(),
        seed=5,
    )
    return replace(base, **changes)


class Page(HTMLParser):
    """Checks that every tag is closed in order, and collects what a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.titles: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, text: str) -> None:
        self.text += text
        if self.open and self.open[-1] == "h2":
            self.titles.append(text)

    def pictures(self) -> list[np.ndarray]:
        coded = [v.removeprefix("data:image/png;base64,") for k, v in self.attributes if k == "src"]
        return [np.array(Image.open(io.BytesIO(base64.b64decode(c, validate=True)))) for c in coded]
