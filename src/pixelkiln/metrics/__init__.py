"""Scores of sets of images, as functions of features: which extractor made them is the caller's business."""

from __future__ import annotations

from .gaussian import Moments, frechet_distance
from .kernel import KernelDistance, kernel_distance, polynomial_mmd2
from .neighbors import K, Neighborhoods, neighborhood_scores
from .result import Report, Result, accuracy

__all__ = [
    "K",
    "KernelDistance",
    "Moments",
    "Neighborhoods",
    "Report",
    "Result",
    "accuracy",
    "frechet_distance",
    "kernel_distance",
    "neighborhood_scores",
    "polynomial_mmd2",
]
