"""What a classifier of noisy images recognizes, by noise level: the report of a method that generates nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pixelkiln.core.images import from_uint8, grid, to_uint8
from pixelkiln.core.protocols import Classifier
from pixelkiln.core.rng import generator

from .charts import chart
from .panels import ReportContext, figure

__all__ = ["accuracy_panel", "recognized"]

IMAGES, LEVELS, SHOWN = 512, 13, 4  # test images, noise levels, rows of examples


def recognized(classifier: Classifier, x0: Tensor, labels: Tensor, sigma: float, seed: int) -> float:
    """Share of the images x0 (N, C, H, W) whose label (N,) is the likeliest at this noise level, with one draw of noise each."""
    eps = torch.randn(x0.shape, generator=generator(seed, "recognized")).to(x0)
    logits = classifier.logits(x0 + sigma * eps, x0.new_full((len(x0),), sigma))
    return float((logits.argmax(1) == labels.to(logits.device)).float().mean())


def accuracy_panel(context: ReportContext) -> str:
    """For a Classifier: its accuracy on test images over log10 of the noise level, and a few of these images at those levels."""
    method, test = context.method, context.test
    if not isinstance(method, Classifier) or test.labels is None or not len(test.images):
        return ""
    rows = context.pick(test, IMAGES)
    rows = rows[test.labels[rows].cpu() >= 0]
    x0, labels = from_uint8(test.images[rows].cpu()).to(method.device), test.labels[rows]
    low, high = (math.log10(s) for s in method.sigma_range)
    logs = [low + (high - low) * k / (LEVELS - 1) for k in range(LEVELS)]
    right = [(at, recognized(method, x0, labels, 10**at, context.seed)) for at in logs]
    chance = float(torch.bincount(labels.cpu()).max()) / len(labels)
    lines = {"accuracy": right, "the commonest class": [(low, chance), (high, chance)]}
    shown = x0[:SHOWN].cpu()
    eps = torch.randn(shown.shape, generator=generator(context.seed, "recognized"))
    noisy = torch.stack([(shown + 10**at * eps) / math.sqrt(1 + 100**at) for at in logs], 1)  # (rows, levels, C, H, W)
    text = f"Images of the {test.split} split at these {LEVELS} noise levels, from {10**low:.3g} to {10**high:.3g}."
    note = f'<p class="note">{len(labels)} images of the {test.split} split, one draw of noise each.</p>'
    curve = chart("recognized", lines, x_unit="log10 of the noise level")
    return f'<div class="charts">{curve}</div>{note}' + figure(grid(to_uint8(noisy.clamp(-1, 1).flatten(0, 1)), LEVELS), text)
