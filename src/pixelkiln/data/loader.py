"""Batches as a pure function of (seed, draw number): training resumes from nothing but the number."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.recipe import DataConfig
from ..core.rng import permutation
from ..core.types import Batch, Condition
from .ahead import Ahead, Key
from .augment import Moves, draw_moves, mirror_text, move_boxes, move_images
from .images import ImageSet
from .prepare import check_config

__all__ = ["Feed"]


class Feed:
    """Batches from one uint8 tensor on the device, or from images that are decoded ahead of the time; which of them makes no difference.

    Draw d covers positions d * batch .. (d + 1) * batch - 1 of an endless stream in which epoch e is a permutation of the data by
    (seed, "order", e); a batch may straddle epochs. x = u8 / 127.5 - 1; augmentation comes from (seed, "augment", d).
    """

    def __init__(
        self,
        data: ImageSet,
        batch: int,
        config: DataConfig,
        seed: int,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        check_config(config)
        assert min(batch, len(data)) >= 1, "a feed needs images and a batch size"
        self.data, self.size, self.config, self.seed = data, batch, config, seed
        self.device = torch.device(device)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.images = data.images.to(self.device) if isinstance(data.images, Tensor) else data.images
        self.ahead: Ahead | None = None
        self.waited = 0.0  # seconds that callers of `batch` have waited for it
        self.labels = None if data.labels is None else data.labels.to(self.device)
        self.maps = {name: data.extras[name].to(self.device) for name in ("mask", "layout") if name in data.extras}
        self._orders: dict[int, Tensor] = {}

    def rows(self, draw: int) -> Tensor:
        """Rows (batch,) int64 of the data set in draw `draw`, on the CPU."""
        position, end, parts = draw * self.size, (draw + 1) * self.size, []
        while position < end:
            epoch, start = divmod(position, len(self.data))
            parts.append(self._order(epoch)[start : start + end - position])
            position += len(parts[-1])
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        """The permutation of an epoch, (N,); the last two are kept, as batches may straddle them."""
        if epoch not in self._orders:
            self._orders = dict([*self._orders.items()][-1:]) | {epoch: permutation(len(self.data), self.seed, "order", epoch)}
        return self._orders[epoch]

    def batch(self, draw: int, part: int = 0, parts: int = 1) -> Batch:
        """The batch of draw `draw`, augmented; or part number `part` of `parts` equal ones of it, and nothing of the others is read."""
        assert self.size % parts == 0, "parts are of equal size"
        begin, key = time.perf_counter(), Key(draw, part, parts)
        moves = draw_moves(self.size, self.config, self.seed, draw)
        mine = None if moves is None else Moves(*(m[self._slice(key)] for m in moves))
        batch = self._gather(self._rows(key), mine, self._decoded(key))
        self.waited += time.perf_counter() - begin
        return batch

    def _slice(self, key: Key) -> slice:
        return slice(key.part * self.size // key.parts, (key.part + 1) * self.size // key.parts)

    def _rows(self, key: Key) -> Tensor:
        return self.rows(key.draw)[self._slice(key)]

    def _decoded(self, key: Key) -> Tensor | None:
        """The images of a streamed set, where processes decode them ahead of the time."""
        if isinstance(self.images, Tensor) or self.images.workers == 0:
            return None
        if self.ahead is None:
            self.ahead = Ahead(self.images, self.size, self._rows, pinned=self.device.type == "cuda")
        return self.ahead.get(key)

    def close(self) -> None:
        """End the processes that decode, if there are any."""
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def passes(self, batch: int | None = None) -> Iterator[Batch]:
        """One pass in the data's order, without augmentation; the last batch may be short."""
        for rows in torch.split(torch.arange(len(self.data)), batch or self.size):
            yield self._gather(rows, None)

    def _gather(self, rows: Tensor, moves: Moves | None, decoded: Tensor | None = None) -> Batch:
        index = rows.to(self.device)
        if decoded is not None:
            pixels = decoded.to(self.device)
        elif isinstance(self.images, Tensor):
            pixels = self.images.index_select(0, index)  # (B, C, H, W) uint8
        else:
            pixels = self.images[rows].to(self.device)
        maps = {name: part.index_select(0, index) for name, part in self.maps.items()}
        texts = None if self.data.texts is None else [self.data.texts[i] for i in rows.tolist()]
        if moves is not None:
            pixels = move_images(pixels, moves)
            if "mask" in maps:
                maps["mask"] = move_images(maps["mask"], moves)
            if "layout" in maps:
                maps["layout"] = move_boxes(maps["layout"], moves, *pixels.shape[2:])
            if texts is not None:
                texts = [mirror_text(text) if flip else text for text, flip in zip(texts, moves.flip.tolist(), strict=True)]
        cond = Condition(
            label=None if self.labels is None else self.labels.index_select(0, index),
            text=None if texts is None else tuple(texts),
            mask=(maps["mask"] > 0).float() if "mask" in maps else None,
            layout=maps.get("layout"),
        )
        return Batch(pixels.to(torch.float32, memory_format=self.format).div_(127.5).sub_(1), cond, index)
