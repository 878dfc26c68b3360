"""Captions as sequences of vectors, learned with the images: no vocabulary, no download, any language that puts characters beside each other.

A word is the mean of the vectors of its parts, the word itself and all runs of 3 to 5 characters of <word>, hashed into a table (Bojanowski et
al. 2017, arXiv 1607.04606, section 3.2), so that a word that was never seen resembles those that share its parts. A transformer reads the
words (Vaswani et al. 2017, arXiv 1706.03762, norms first); a start token in front of them stands for the whole caption, and alone for none.

Legend: B captions of at most L - 1 words, D the vectors' dimension.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import attend

__all__ = ["BUCKETS", "TextEncoder", "Words", "parts_of", "words_of"]

BUCKETS = 8192  # rows of the table
RUNS = (3, 4, 5)  # lengths of the runs of characters


class Words(NamedTuple):
    """Captions for the attention of a network: tokens (B, L, D), and which of them there are (B, L) bool, the first always."""

    tokens: Tensor
    there: Tensor


def words_of(text: str, most: int) -> list[str]:
    """The first words of a caption, in lower case; a mark of punctuation is a word."""
    return re.findall(r"\w+|[^\w\s]", text.lower())[:most]


@lru_cache(maxsize=100_000)
def parts_of(word: str) -> tuple[int, ...]:
    """Rows of the table for a word and for its runs of characters: CRC-32 modulo the number of rows."""
    whole = f"<{word}>"
    runs = {whole[i : i + n] for n in RUNS for i in range(len(whole) - n + 1)} | {whole}
    return tuple(sorted(zlib.crc32(run.encode()) % BUCKETS for run in runs))


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); words that are not there are not looked at."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """x (B, L, D), there (B, L) bool -> (B, L, D)."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attend(q, k, v, there[:, None, None]).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Captions to `Words` and one vector (B, D) for the whole."""

    def __init__(self, dim: int, words: int, depth: int = 2) -> None:
        super().__init__()
        self.words = words
        self.table = nn.EmbeddingBag(BUCKETS, dim, mode="mean")
        self.start = nn.Parameter(torch.randn(dim))
        self.positions = nn.Parameter(0.1 * torch.randn(words, dim))
        self.blocks = nn.ModuleList(Block(dim, max(1, dim // 64)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, texts: Sequence[str], lost: Tensor | None = None) -> tuple[Words, Tensor]:
        """lost (B,) bool: captions that are not read, as if they were empty."""
        device, n, dim = self.start.device, len(texts), self.start.shape[0]
        found = [words_of(text, self.words) for text in texts]
        ids = [parts_of(word) for words in found for word in words]
        there = torch.arange(self.words) < torch.tensor([len(words) for words in found])[:, None]  # (B, L - 1)
        there = there.to(device)
        if lost is not None:
            there = there & ~lost[:, None]
        tokens = self.positions.new_zeros(n, self.words, dim)
        if ids:
            flat = torch.tensor([i for parts in ids for i in parts]).to(device)
            ends = torch.tensor([len(parts) for parts in ids]).cumsum(0)
            place = torch.tensor([row * self.words + i for row, words in enumerate(found) for i in range(len(words))]).to(device)
            bags = self.table(flat, torch.cat([ends.new_zeros(1), ends[:-1]]).to(device))
            tokens = tokens.view(-1, dim).index_copy(0, place, bags.to(tokens.dtype)).view_as(tokens)
        x = torch.cat([self.start.expand(n, 1, dim), tokens + self.positions], dim=1)
        there = F.pad(there, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, there)
        x = self.norm(x)
        return Words(x, there), x[:, 0]
