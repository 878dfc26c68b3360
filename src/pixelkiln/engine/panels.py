"""The pictures of a report: one small function a panel, from a ReportContext to HTML, "" where the method cannot do it.

A method is known by its protocols only. All panels together draw at most about 100 samples, with the method's default steps.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import Any, Protocol

import torch
from torch import Tensor

from pixelkiln.core.images import from_uint8, grid, png_bytes, to_uint8
from pixelkiln.core.protocols import Codec, Denoiser, Latent, Likelihood, Method
from pixelkiln.core.rng import generator, permutation
from pixelkiln.core.types import Ability, Condition, Request

from .charts import chart, number
from .sample import middle, seeds_for, slerp

__all__ = [
    "Drawn",
    "Extractor",
    "Images",
    "Panel",
    "ReportContext",
    "bits_panel",
    "edits_panel",
    "figure",
    "history_panel",
    "reconstructions_panel",
    "samples_panel",
    "strip_panel",
    "undisturbed",
    "walk_panel",
]

SAMPLES, ROWS, PER_ROW = 60, 15, 8  # samples by class: at most ROWS classes of at most PER_ROW
EDITS, CODED, STRIP, MOMENTS, WALKS, WALK_STEPS, TIMES = 8, 8, 4, 9, 3, 8, 8
CHUNK = 32  # samples drawn at a time
BOUNDED, EVALUATIONS = 16, 100  # images whose bound is shown step by step, and steps of each


class Pixels(Protocol):
    """Images uint8 (N, C, H, W): a tensor, or what looks like one and decodes the rows that an index names."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor, /) -> Tensor: ...


class Images(Protocol):
    """What a report needs of a data set: images, labels (N,) int64 or None, names of classes, its name and split."""

    @property
    def images(self) -> Pixels: ...
    @property
    def labels(self) -> Tensor | None: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def texts(self) -> tuple[str, ...] | None: ...


class Extractor(Protocol):
    """features: uint8 images (N, C, H, W) -> (N, F). features_of: the same of a data set or its rows, which may have been kept."""

    def features(self, images: Tensor, /) -> Tensor: ...
    def features_of(self, data: Any, rows: Tensor | None = None, /) -> Tensor: ...


@dataclass(frozen=True)
class Drawn:
    """Samples uint8 (N, C, H, W), the class of each (or nothing), and the source images of an editing method."""

    images: Tensor
    labels: Tensor | None
    sources: Tensor | None


@dataclass(frozen=True)
class ReportContext:
    """All that a report is made of. records: rows of metrics.jsonl. history: (step, picture uint8 (C, H, W)) of the same seeds.

    evaluation: {"metrics": [{"name", "value", "better", "floor", "protocol", "error"}], "warnings": [...]}.
    Samples have the seeds of `pixelkiln sample --seed`.
    """

    method: Method
    train: Images
    test: Images
    facts: Mapping[str, str]
    records: Sequence[Mapping[str, Any]]
    history: Sequence[tuple[int, Tensor]]
    evaluation: Mapping[str, Any] | None
    extractor: Extractor | None
    seed: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the method can be asked for, at most 15 of them; () without."""
        return self.method.info.classes[:ROWS] if Ability.LABEL in self.method.abilities else ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Captions of the test split, at most 15 of them, for a method that reads them; () otherwise."""
        if Ability.TEXT not in self.method.abilities or Ability.SOURCE in self.method.abilities or self.test.texts is None:
            return ()
        return tuple(self.test.texts[i] for i in self.pick(self.test, ROWS).tolist())

    @cached_property
    def drawn(self) -> Drawn:
        """The samples that several panels show: some of each class, row by row, or edits of test images."""
        if Ability.SOURCE in self.method.abilities:
            cond, n = self.condition(EDITS), min(EDITS, len(self.test.images))
        else:
            rows = len(self.classes or self.texts)
            per_row = min(PER_ROW, SAMPLES // max(rows, 1))
            n = per_row * rows or 6 * PER_ROW
            cond = self.condition(n, torch.arange(n) // per_row)
        request = Request(seeds_for(self.seed, n), cond)
        parts = [self.sample(request.take(slice(k, k + CHUNK))) for k in range(0, n, CHUNK)]
        return Drawn(torch.cat(parts), cond.label, None if cond.source is None else to_uint8(cond.source))

    def sample(self, request: Request) -> Tensor:
        """Samples, uint8 (n, C, H, W)."""
        return to_uint8(self.method.sample(replace(request, cond=request.cond.to(self.method.device)))).cpu()

    def condition(self, n: int, labels: Tensor | None = None) -> Condition:
        """What n samples are asked for: these classes or captions (0, 1, ... by default) where the method takes any, test images where it edits."""
        if Ability.SOURCE in self.method.abilities:
            rows = self.pick(self.test, n)
            given = None if self.test.labels is None or not self.classes else self.test.labels[rows].cpu()
            return Condition(label=given, source=from_uint8(self.test.images[rows].cpu()), mask=middle(self.method, len(rows)))
        if texts := self.texts:
            which = range(n) if labels is None else labels.tolist()
            return Condition(text=tuple(texts[i % len(texts)] for i in which))
        if not self.classes:
            return Condition()
        return Condition(label=torch.arange(n) % len(self.classes) if labels is None else labels)

    def pick(self, data: Images, n: int) -> Tensor:
        """Rows of n images of the data set, (n,) int64, the same for every panel."""
        return permutation(len(data.images), self.seed, "report", data.split)[:n]


Panel = Callable[[ReportContext], str]


@contextmanager
def undisturbed(method: Method) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module's mode and torch's random state are as they were."""
    modes = [(module, module.training) for module in method.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            method.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def figure(picture: Tensor, caption: str, alt: str = "") -> str:
    """A picture uint8 (C, H, W) inside the page, with a caption or words for those who do not see it, both escaped here."""
    data = base64.b64encode(png_bytes(picture)).decode()
    size = f'width="{picture.shape[2]}" height="{picture.shape[1]}"'
    shown = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{data}" {size} alt="{escape(alt)}">{shown}</figure>'


def samples_panel(context: ReportContext) -> str:
    """One row of samples a class, or a plain grid; then real images for comparison."""
    if Ability.SOURCE in context.method.abilities or not context.method.generates:
        return ""
    images, total, names = context.drawn.images, len(context.method.info.classes), context.classes or context.texts
    seeds = f"Seed {context.seed}, nothing selected."
    if names:
        rows = zip(names, torch.chunk(images, len(names)), strict=True)
        shown = [(name, figure(grid(row, len(row)), "", f"samples of {name}")) for name, row in rows]
        body = "".join(f'<div><span>{escape(name)}</span>{picture}</div>' for name, picture in shown)
        width = min(12, max(len(name) for name in names))
        more = f" The first {len(context.classes)} of {total} classes." if total > len(context.classes) > 0 else " Captions of the test split." if context.texts else ""
        body = f'<div class="rows" style="--name:{width}ch">{body}</div><p class="note">{seeds}{more}</p>'
    else:
        body = figure(grid(images, PER_ROW), seeds)
    real = context.test.images[context.pick(context.test, 2 * PER_ROW)]
    return body + figure(grid(real, PER_ROW), f"For comparison: real images of the {context.test.split} split.") if len(real) else body


def edits_panel(context: ReportContext) -> str:
    """For a method that edits: source images above their edits."""
    if Ability.SOURCE not in context.method.abilities:
        return ""
    drawn = context.drawn
    assert drawn.sources is not None
    masked = " The middle was masked." if Ability.MASK in context.method.abilities else ""
    return figure(grid(torch.cat([drawn.sources, drawn.images]), len(drawn.images)), f"Above: images of the test split. Below: their edits.{masked}")


def history_panel(context: ReportContext) -> str:
    """The same seeds at up to eight moments of training, the first and the last among them."""
    n = len(context.history)
    keep = sorted({round(k * (n - 1) / (TIMES - 1)) for k in range(TIMES)}) if n > TIMES else range(n)
    shown = "".join(figure(picture, f"step {step:,}") for step, picture in (context.history[k] for k in keep))
    return f'<div class="tiles">{shown}</div>' if shown else ""


def strip_panel(context: ReportContext) -> str:
    """For a Denoiser, or a method that builds on one: its estimate of the finished image along the solver's steps."""
    method = context.method
    if not any(isinstance(m, Denoiser) for m in (method, *method.parents.values())):
        return ""
    seen: list[Tensor] = []
    cond = context.condition(STRIP)
    count = STRIP if cond.source is None else len(cond.source)
    final = context.sample(Request(seeds_for(context.seed, count), cond, callback=lambda i, n, x0: seen.append(to_uint8(x0).cpu())))
    if not seen:
        return ""
    keep = sorted({round(k * (len(seen) - 1) / (MOMENTS - 1)) for k in range(MOMENTS)})
    strip = torch.stack([*(seen[k] for k in keep), final], 1)  # (samples, moments, C, H, W)
    at = ", ".join(str(k + 1) for k in keep)
    text = f"Left to right: the estimate of the finished image x0 after solver steps {at} of {len(seen)}, and last the sample itself."
    return figure(grid(strip.flatten(0, 1), strip.shape[1]), text)


def reconstructions_panel(context: ReportContext) -> str:
    """For a Codec: test images above what is left of them after encoding and decoding."""
    method = context.method
    if not isinstance(method, Codec) or not len(context.test.images):
        return ""
    real = context.test.images[context.pick(context.test, CODED)].cpu()
    back = to_uint8(method.decode(method.encode(from_uint8(real).to(method.device)))).cpu()
    rms = (back.float() - real.float()).square().mean().sqrt().item()
    text = f"Above: images of the {context.test.split} split. Below: encoded and decoded. Root mean square error {rms:.1f} of 255 levels."
    return figure(grid(torch.cat([real, back]), len(real)), text)


def bits_panel(context: ReportContext) -> str:
    """For a likelihood that is a sum over the steps of a chain: what each step costs, in bits per dimension of test images."""
    method, real = context.method, context.test.images
    if not isinstance(method, Likelihood) or not len(real):
        return ""
    x = from_uint8(real[context.pick(context.test, BOUNDED)].cpu()).to(method.device)
    terms = method.terms(x, EVALUATIONS, generator(context.seed, "report", "terms")).double().cpu()  # (K, 2)
    if not len(terms):
        return ""
    bits = terms[:, 1] / (method.shape.numel * math.log(2))
    points = [(float(i), math.log10(b)) for i, b in zip(terms[:, 0], bits, strict=True) if b > 0]
    text = f"Step 1, the 256 levels of the image given its least noisy version, costs {number(float(bits[0]))} bits per dimension; noise grows with the step."
    return f'<div class="charts">{chart("bits per dimension of a step", {"": points}, "log10")}</div><p class="note">{text}</p>' if points else ""


def walk_panel(context: ReportContext) -> str:
    """For a Latent that does not edit: great-circle walks between pairs of seeds, each within one class."""
    method = context.method
    if not isinstance(method, Latent) or Ability.SOURCE in method.abilities:
        return ""
    seeds = seeds_for(context.seed, 2 * WALKS)
    z = method.latents(seeds)  # (2 walks, ...)
    points = [slerp(z[:WALKS], z[WALKS:], k / (WALK_STEPS - 1)) for k in range(WALK_STEPS)]
    walks = torch.stack(points, 1).flatten(0, 1).to(method.device)  # (walks * steps, ...)
    row = torch.arange(WALKS).repeat_interleave(WALK_STEPS)
    cond = context.condition(len(walks), row % max(len(context.classes), 1)).to(method.device)
    images = to_uint8(method.from_latents(walks, Request(seeds_for(context.seed, len(walks)), cond))).cpu()
    return figure(grid(images, WALK_STEPS), "Each row goes from one random latent to another along a great circle.")
