"""A transformer that reads a sequence of codes from left to right and says, for each place, how likely each code is (Vaswani et al. 2017).

As Esser et al. 2021 (arXiv 2012.09841, section 3.2) in what it models, as LlamaGen (Sun et al. 2024, arXiv 2406.06525) in its blocks: norms by
the root mean square, normalized queries and keys, SwiGLU. The condition's vector stands before the first code and is added at every place.
Places are learned vectors, one a place, since codebooks follow each other and each may have its own grid; each codebook has its own table and head.
Vectors of codes and places begin with a variance of 1, as those of classes do: begun with 0.02, the class outweighs both for long.

A step of sampling reads one place: keys and values of those before lie in a `Cache` of full length, allocated once and written in place. Its products are
small, so that the time goes into calls; what does not depend on the place is therefore done once a cache: gains go into the weights behind them.

Legend: B batch, N codes of a sequence, K codes of a codebook, E width, d = E / heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.types import UserError
from ..layers.attention import attend
from ..layers.norm import EPS, rms_norm

__all__ = ["Cache", "Causal", "CausalConfig"]


@dataclass(frozen=True)
class CausalConfig:
    """Size of the transformer."""

    width: int = 192
    depth: int = 6
    heads: int = 3
    ratio: float = 4.0  # hidden units of a plain perceptron of as many weights, for each unit of width
    dropout: float = 0.1


class _Folded(NamedTuple):
    """A block's weights, (in, out), with the gains of its norms in them, and the square roots of their sizes (see `_unit`); `turn` (d,) holds the gains
    of queries and keys, and what the logits are divided by."""

    qkv: Tensor
    proj: Tensor
    enter: Tensor
    leave: Tensor
    turn: Tensor
    least: tuple[Tensor, Tensor]  # of E and of d


def _turned(w: Tensor) -> Tensor:
    """A weight (out, in) as (in, out), which a product with few rows reads a third faster (a busy EPYC, 24 weights of 10.6 MB in all: 2.0 and 1.4 ms);
    and of the type that autocast would make it anew at every product."""
    kind = w.device.type
    return (w.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else w).t().contiguous()


def _least(size: int, like: Tensor) -> Tensor:
    """sqrt(D eps), a scalar, for `_unit`."""
    return torch.tensor((size * EPS) ** 0.5, device=like.device)


def _unit(x: Tensor, least: Tensor) -> Tensor:
    """norm(x) / sqrt(D) = x / sqrt(|x|^2 + D eps) over the last dimension, D: in three calls, of which a small step mostly consists."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), least)


class Cache:
    """Keys and values of all layers for up to `room` places, (depth, 2, B, heads, room, d), of the type of the first; `length` are there.

    With them the weights that its steps use, as they are at its first: a cache is for one pass over a sequence by one set of weights.
    """

    def __init__(self, depth: int, room: int) -> None:
        self.depth, self.room, self.length = depth, room, 0
        self.both: list[tuple[Tensor, Tensor]] = []  # a layer's keys, and its values, (B, heads, room, d)
        self.blocks: list[_Folded] = []
        self.heads: list[Tensor] = []

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, heads, d) behind what is there; keys and values of all places up to this one, (B, heads, n, d), views."""
        if not self.both:
            kept = k.new_zeros(self.depth, 2, *k.shape[:2], self.room, k.shape[2])
            self.both = [(kept[i, 0], kept[i, 1]) for i in range(self.depth)]
        keys, values = self.both[layer]
        keys[:, :, self.length], values[:, :, self.length] = k, v
        return keys.narrow(2, 0, self.length + 1), values.narrow(2, 0, self.length + 1)


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

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, n, E), mask (1, 1, n, n) of what each place may look at -> (B, n, E)."""
        b, n, e = x.shape
        gains, turn = self.gains.to(x.dtype), self.turn.to(x.dtype)
        q, k, v = self.qkv(rms_norm(x) * gains[0]).view(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4)  # (B, heads, n, d)
        q, k = (rms_norm(q) * turn[0]).to(v.dtype), (rms_norm(k) * turn[1]).to(v.dtype)
        h = self.proj(attend(q, k, v, mask).transpose(1, 2).reshape(b, n, e))
        x = x + F.dropout(h, self.dropout, self.training)
        gate, h = self.enter(rms_norm(x) * gains[1]).chunk(2, dim=-1)
        return x + F.dropout(self.leave(F.silu(gate) * h), self.dropout, self.training)

    def folded(self) -> _Folded:
        """(g norm(x)) W^T = unit(x) (sqrt(E) g W)^T, and (g norm(q)) (h norm(k)) / sqrt(d) = (sqrt(d) g h unit(q)) unit(k)."""
        gains, (e, d) = self.gains * self.gains.shape[1] ** 0.5, (self.gains.shape[1], self.turn.shape[1])
        weights = (self.qkv.weight * gains[0], self.proj.weight, self.enter.weight * gains[1], self.leave.weight)
        qkv, proj, enter, leave = map(_turned, weights)
        return _Folded(qkv, proj, enter, leave, (self.turn.prod(0) * d**0.5).to(qkv.dtype), (_least(e, qkv), _least(d, qkv)))

    def step(self, x: Tensor, cache: Cache) -> Tensor:
        """`forward` of the next place alone, without dropout: x (B, E) -> (B, E)."""
        w = cache.blocks[self.layer]
        b, e = x.shape
        qk, v = torch.mm(_unit(x, w.least[0]), w.qkv).view(b, 3, self.heads, e // self.heads).split([2, 1], dim=1)
        q, k = _unit(qk, w.least[1]).to(v.dtype).unbind(1)  # (B, heads, d)
        keys, values = cache.put(self.layer, k, v[:, 0])
        h = F.scaled_dot_product_attention((q * w.turn)[:, :, None], keys, values, scale=1.0)
        x = x + torch.mm(h.reshape(b, e), w.proj)
        gate, h = torch.mm(_unit(x, w.least[0]), w.enter).chunk(2, dim=1)
        return x + torch.mm(F.silu(gate) * h, w.leave)


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
        self.place = nn.Parameter(torch.randn(self.total, config.width))
        self.blocks = nn.ModuleList(_Block(config, i) for i in range(config.depth))
        self.gain = nn.Parameter(torch.ones(config.width))
        self.heads = nn.ModuleList(nn.Linear(config.width, vocabulary) for _ in lengths)
        for p in self.heads.parameters():
            nn.init.normal_(p, std=0.02) if p.ndim > 1 else nn.init.zeros_(p)

    def forward(self, tokens: Tensor, vec: Tensor) -> Tensor:
        """All places at once: tokens (B, N), of which the last is not read, vec (B, E) -> logits (B, N, K)."""
        n = tokens.shape[1]
        h = self._entered(tokens[:, : n - 1], vec)
        mask = torch.ones(n, n, dtype=torch.bool, device=vec.device).tril()[None, None]
        for block in self.blocks:
            h = block(h, mask)
        parts = (rms_norm(h) * self.gain.to(h.dtype)).split(self._upto(n), dim=1)
        return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=False)], dim=1).float()

    def step(self, last: Tensor | None, vec: Tensor, cache: Cache) -> Tensor:
        """The next place, without dropout: `last` (B,) is the code before it (None at the first) -> logits (B, K)."""
        i = cache.length
        if not cache.blocks:
            cache.blocks = [cast(_Block, block).folded() for block in self.blocks]
            cache.heads = [_turned(cast(nn.Linear, head).weight * self.gain * self.config.width**0.5) for head in self.heads]
        h = self.place[i] + vec  # (B, E)
        if last is not None:
            h = h + self.table(last + self.vocabulary * self.books[i - 1])
        for block in self.blocks:
            h = cast(_Block, block).step(h, cache)
        cache.length = i + 1
        weight, bias = cache.heads[self.books[i]], cast(nn.Linear, self.heads[self.books[i]]).bias
        return (torch.mm(_unit(h, cache.blocks[0].least[0]), weight) + bias).float()

    def _upto(self, n: int) -> list[int]:
        """How many of the first n places each codebook has."""
        left = n
        found: list[int] = []
        for length in self.lengths:
            found.append(min(length, left))
            left -= found[-1]
        return found

    def _entered(self, before: Tensor, vec: Tensor) -> Tensor:
        """What the first n places begin with, (B, n, E): the code before (B, n - 1) (none at place 0), the place, and the condition."""
        n = before.shape[1] + 1
        h = torch.cat([torch.zeros_like(vec)[:, None], self.table(before + self.offset[: n - 1])], dim=1)
        return F.dropout(h + self.place[:n] + vec[:, None], self.config.dropout, self.training)
