"""Data: sources of images (embedded, IDX, folders, archives, Parquet, the Hub, npz) as one set, and batches as a function of their number."""

from __future__ import annotations

from .images import ImageSet, Split
from .loader import Feed
from .npz import write_npz
from .pictures import pictures
from .sources import open_source
from .stream import Streamed

__all__ = ["Feed", "ImageSet", "Split", "Streamed", "open_source", "pictures", "write_npz"]
