"""Recipes of several methods: a codec, then a model of its codes, by one command. The codec is in stages/codec of the run's folder, a run itself."""

from __future__ import annotations

from dataclasses import replace

from ..core.recipe import Expect, Recipe, Size, Stage, on_mnist
from ..methods import code_prior as prior
from ..methods import vqgan, vqvae

__all__ = ["vq_transformer", "vqgan_transformer"]


def _both(first: Recipe, second: Recipe, summary: str, expect: tuple[Expect, ...]) -> Recipe:
    """The codec and then the prior, on the same images."""
    coded = replace(first.last, name="codec")
    written: Stage = replace(second.last, data=coded.data, parents={"codec": "codec"}, name="prior")
    return replace(second, stages=(coded, written), summary=summary, expect=expect)


def vq_transformer(size: Size = "small") -> Recipe:
    """`vqvae`, then `code-prior` on its codes: a generator by one command."""
    return _both(vqvae.vqvae(size), prior.code_prior(size), "a VQ-VAE and a transformer that writes its codes: a generator in two stages",
                 on_mnist(size, "vq-transformer --prior.model.net.dropout 0", "10m", "avx2", fd=4.2))


def vqgan_transformer(size: Size = "small") -> Recipe:
    """`vqgan`, then `code-prior` on its codes."""
    return _both(vqgan.vqgan(size), prior.code_prior(size), "a VQGAN and a transformer that writes its codes: a generator in two stages",
                 on_mnist(size, "vqgan-transformer --prior.model.net.dropout 0", "10m", "avx2", fd=2.7))
