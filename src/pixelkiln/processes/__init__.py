"""The maths between data and noise, without networks: Gaussian paths, times, and conversions between eps, x0 and v."""

from __future__ import annotations

from .gaussian import GaussianPath, cosine_path, linear_path, times
from .parameterization import Kind, mix, target, to_eps, to_v, to_x0

__all__ = ["GaussianPath", "Kind", "cosine_path", "linear_path", "mix", "target", "times", "to_eps", "to_v", "to_x0"]
