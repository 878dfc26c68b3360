"""Scores of sets of images, as functions of features: which extractor made them is the caller's business."""

from __future__ import annotations

from .agreement import Agreement, mutual_information, purity
from .classes import InceptionScore, Modes, inception_score
from .disentangle import DCI, Gaps, dci, mig, sap
from .diversity import Vendi, vendi_score
from .extrapolate import Curve, frechet_infinity, n_curve
from .gaussian import Moments, frechet_distance, frechet_error
from .interval import Interval, bootstrap
from .kernel import KernelDistance, kernel_distance, mmd2, polynomial, rbf
from .memorization import Closeness, authenticity, copying, nearest_ratio
from .neighbors import K, Neighborhoods, neighborhood_scores
from .pairs import ms_ssim, psnr, ssim
from .perceptual import path_length, perceptual_distance
from .result import Estimate, Report, Result, accuracy
from .sliced import SlicedDistance, sliced_distance

__all__ = [  # noqa: RUF022 (K is a constant)
    "DCI",
    "K",
    "Agreement",
    "Closeness",
    "Curve",
    "Estimate",
    "Gaps",
    "InceptionScore",
    "Interval",
    "KernelDistance",
    "Modes",
    "Moments",
    "Neighborhoods",
    "Report",
    "Result",
    "SlicedDistance",
    "Vendi",
    "accuracy",
    "authenticity",
    "bootstrap",
    "copying",
    "dci",
    "frechet_distance",
    "frechet_error",
    "frechet_infinity",
    "inception_score",
    "kernel_distance",
    "mig",
    "mmd2",
    "ms_ssim",
    "mutual_information",
    "n_curve",
    "nearest_ratio",
    "neighborhood_scores",
    "path_length",
    "perceptual_distance",
    "polynomial",
    "psnr",
    "purity",
    "rbf",
    "sap",
    "sliced_distance",
    "ssim",
    "vendi_score",
]
