"""The maths between data and noise, without networks: Gaussian paths, densities of times, and conversions between predictions."""

from __future__ import annotations

from .betas import Betas, beta, beta_tilde, betas
from .densities import Density, draw_times, quantile, strata, times
from .gaussian import GaussianPath, keeps_data
from .parameterization import SIGMA_DATA, Kind, Preconditioning, coefficients, convert, mix, precondition, target, to_eps, to_v, to_x0
from .schedules import (
    PATHS,
    PathName,
    cosine_path,
    edm_path,
    flow_path,
    laplace_path,
    linear_path,
    sigmoid_path,
    subvp_path,
    ve_path,
    zero_snr,
)

__all__ = [
    "PATHS",
    "SIGMA_DATA",
    "Betas",
    "Density",
    "GaussianPath",
    "Kind",
    "PathName",
    "Preconditioning",
    "beta",
    "beta_tilde",
    "betas",
    "coefficients",
    "convert",
    "cosine_path",
    "draw_times",
    "edm_path",
    "flow_path",
    "keeps_data",
    "laplace_path",
    "linear_path",
    "mix",
    "precondition",
    "quantile",
    "sigmoid_path",
    "strata",
    "subvp_path",
    "target",
    "times",
    "to_eps",
    "to_v",
    "to_x0",
    "ve_path",
    "zero_snr",
]
