"""A transformer that reads a sequence of codes from left to right and says, for each place, how likely each code is (Vaswani et al. 2017).

As Esser et al. 2021 (arXiv 2012.09841, section 3.2) in what it models, as LlamaGen (Sun et al. 2024, arXiv 2406.06525) in its blocks: norms by
the root mean square, normalized queries and keys, SwiGLU. The condition's vector stands before the first code and is added at every place.
Places are learned vectors, one a place, since codebooks follow each other and each may have its own grid; each codebook has its own table and head.

A step of sampling reads one place: keys and values of those before lie in a `Cache` of full length, allocated once and written in place.

Legend: B batch, N codes of a sequence, K codes of a codebook, E width, d = E / heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import UserError
from ..layers.attention import attend
from ..layers.norm import rms_norm

__all__ = ["Cache", "Causal", "CausalConfig"]


@dataclass(frozen=True)
class CausalConfig:
    """Size of the transformer."""

    width: int = 192
    depth: int = 6
    heads: int = 3
    ratio: float = 4.0  # hidden units of a plain perceptron of as many weights, for each unit of width
    dropout: float = 0.1


class Cache:
    """Keys and values of all layers for up to `room` places, (depth, B, heads, room, d) each, of the type of the first; `length` are there."""

    def __init__(self, depth: int, room: int) -> None:
        self.depth, self.room, self.length = depth, room, 0
        self.both: Tensor | None = None  # (2, depth, B, heads, room, d)

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, heads, n, d) behind what is there; keys and values of all places up to the last, views."""
        b, heads, n, d = k.shape
        if self.both is None:
            self.both = k.new_zeros(2, self.depth, b, heads, self.room, d)
        end = self.length + n
        self.both[0, layer, :, :, self.length : end], self.both[1, layer, :, :, self.length : end] = k, v
        return self.both[0, layer, :, :, :end], self.both[1, layer, :, :, :end]


class _Block(nn.Module):
    """x + attention(g1 norm(x)), then x + mlp(g2 norm(x)); both ends start small, as there are `depth` of them (Radford et al. 2019)."""

    def __init__(self, config: CausalConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.dropout = layer, config.heads, config.dropout
        width, hidden = config.width, round(config.ratio * config.width * 2 / 3 / 8) * 8
        self.gains = nn.Parameter(torch.ones(2, width))
        self.turn = nn.Parameter(torch.ones(2, width // config.heads))  # gains of normalized queries and keys
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.enter, self.leave = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)
        for linear in (self.qkv, self.enter):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (self.proj, self.leave):
            nn.init.normal_(linear.weight, std=0.02 / (2 * config.depth) ** 0.5)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """x (B, n, E), mask (1, 1, n, n) of what each place may look at -> (B, n, E)."""
        b, n, e = x.shape
        gains, turn = self.gains.to(x.dtype), self.turn.to(x.dtype)
        q, k, v = self.qkv(rms_norm(x) * gains[0]).view(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)  # (B, heads, n, d)
        q, k = (rms_norm(q) * turn[0]).to(v.dtype), (rms_norm(k) * turn[1]).to(v.dtype)
        if cache is not None:
            k, v = cache.put(self.layer, k, v)
        h = self.proj(attend(q, k, v, mask).transpose(1, 2).reshape(b, n, e))
        x = x + F.dropout(h, self.dropout, self.training)
        gate, h = self.enter(rms_norm(x) * gains[1]).chunk(2, dim=-1)
        return x + F.dropout(self.leave(F.silu(gate) * h), self.dropout, self.training)


class Causal(nn.Module):
    """log p(c_i | c_1 .. c_{i-1}, condition), up to a constant, of N = sum of `lengths` codes: lengths[l] of codebook l, K codes each."""

    offset: Tensor

    def __init__(self, vocabulary: int, lengths: Sequence[int], config: CausalConfig) -> None:
        super().__init__()
        if min(config.width, config.depth, config.heads) < 1 or config.width % config.heads:
            raise UserError(f"a width of {config.width} does not make {config.heads} heads: give a multiple of it")
        self.config, self.vocabulary, self.lengths, self.total = config, vocabulary, tuple(lengths), sum(lengths)
        self.books = [i for i, length in enumerate(lengths) for _ in range(length)]  # which codebook a place has
        self.register_buffer("offset", vocabulary * torch.tensor(self.books), persistent=False)  # (N,): where its codes are in the table
        self.table = nn.Embedding(vocabulary * len(lengths), config.width)
        self.place = nn.Parameter(0.02 * torch.randn(self.total, config.width))
        self.blocks = nn.ModuleList(_Block(config, i) for i in range(config.depth))
        self.gain = nn.Parameter(torch.ones(config.width))
        self.heads = nn.ModuleList(nn.Linear(config.width, vocabulary) for _ in lengths)
        nn.init.normal_(self.table.weight, std=0.02)
        for p in self.heads.parameters():
            nn.init.normal_(p, std=0.02) if p.ndim > 1 else nn.init.zeros_(p)

    def forward(self, tokens: Tensor, vec: Tensor) -> Tensor:
        """All places at once: tokens (B, N), of which the last is not read, vec (B, E) -> logits (B, N, K)."""
        n = tokens.shape[1]
        h = self._run(self._entered(tokens[:, : n - 1], vec, 0, n), torch.ones(n, n, dtype=torch.bool, device=vec.device).tril()[None, None], None)
        parts = h.split(self._upto(n), dim=1)
        return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=False)], dim=1).float()

    def step(self, last: Tensor | None, vec: Tensor, cache: Cache) -> Tensor:
        """The next place: `last` (B,) is the code before it (None at the first) -> logits (B, K)."""
        i = cache.length
        before = vec.new_zeros(len(vec), 0, dtype=torch.long) if last is None else last[:, None]
        h = self._run(self._entered(before, vec, i, i + 1), None, cache)  # (B, 1, E)
        cache.length = i + 1
        return self.heads[self.books[i]](h[:, 0]).float()

    def _upto(self, n: int) -> list[int]:
        """How many of the first n places each codebook has."""
        left = n
        found: list[int] = []
        for length in self.lengths:
            found.append(min(length, left))
            left -= found[-1]
        return found

    def _entered(self, before: Tensor, vec: Tensor, start: int, end: int) -> Tensor:
        """What places start..end-1 begin with, (B, end - start, E): the code before (none at place 0), the place, and the condition."""
        first = 1 if start == 0 else start
        h = self.table(before + self.offset[first - 1 : end - 1])
        if start == 0:
            h = torch.cat([torch.zeros_like(vec)[:, None], h], dim=1)
        return F.dropout(h + self.place[start:end] + vec[:, None], self.config.dropout, self.training)

    def _run(self, h: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """(B, n, E) -> (B, n, E) through all blocks and the last norm."""
        for block in self.blocks:
            h = block(h, mask, cache)
        return rms_norm(h) * self.gain.to(h.dtype)
