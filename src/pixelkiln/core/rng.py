"""Counter-based randomness: every random number is a function of a key, so nothing random is ever saved.

A key is any tuple of integers and strings, hashed to 63 bits. Training step k draws from (seed, rank, images seen, ...);
sample i draws from its own seed. (The idea is EDM2's `set_random_seed(seed, rank, cur_nimg)`, taken one step further.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

__all__ = ["generator", "key", "noise", "permutation", "seed_all", "streams", "uniform"]


_GAMMA, _MIX1, _MIX2 = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as int64


def key(*parts: int | str) -> int:
    """A 63-bit integer that depends on all parts, their types and their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator for the key."""
    return torch.Generator().manual_seed(key(*parts))


def seed_all(*parts: int | str) -> None:
    """Seed torch's global generators (all devices in use) with the key: dropout and noise of one training step.

    As torch.manual_seed, which, however, formats a stack trace for every kind of accelerator that is absent: 0.2 ms, each time.
    """
    number = key(*parts)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    elif _accelerator() not in ("", "cuda"):
        torch.manual_seed(number)


@cache
def _accelerator() -> str:
    """The kind of accelerator here: cuda, mps, xpu, ..., "" where there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "" if found is None else found.type


def permutation(n: int, *parts: int | str) -> Tensor:
    """A permutation of 0..n-1, (n,) int64, that depends on the key alone."""
    return torch.randperm(n, generator=generator(*parts))


def uniform(index: Tensor, *parts: int | str) -> Tensor:
    """Uniform numbers in [0, 1), float64 of the shape of `index` (int64): number i depends on i and the key alone.

    The upper 53 bits of output i (from 0) of SplitMix64 begun at the key: mix(key + (i + 1) GAMMA), modulo 2^64.
    G. Steele, D. Lea, C. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014; the mix is D. Stafford's variant 13.
    """
    z = (index + 1) * _GAMMA + key(*parts)  # int64 wraps around
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return _shift(z ^ _shift(z, 31), 11).double() * 2.0**-53


def _shift(z: Tensor, bits: int) -> Tensor:
    """z >> bits of unsigned integers."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def streams(seeds: Sequence[int], name: str) -> list[torch.Generator]:
    """One generator per sample; draws of sample i never depend on its neighbours."""
    return [generator(int(s), name) for s in seeds]


def noise(gens: Sequence[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (len(gens), *shape), row i from generator i (drawn on the CPU, so that devices agree)."""
    rows = [torch.randn(tuple(shape), generator=g) for g in gens]
    return torch.stack(rows).to(device)
