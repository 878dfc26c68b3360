"""Images in and out: [-1, 1] to 8 bits and back, grids, PNG, GIF, and a reader that trusts no file.

Pictures are uint8 (C, H, W) tensors, C = 1 (grey) or 3 (RGB); batches are (N, C, H, W).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .files import write_bytes
from .types import UserError

__all__ = ["decode_image", "from_uint8", "grid", "png_bytes", "read_image", "save_gif", "save_png", "to_uint8"]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # nothing else is ever parsed, whatever the name of the file
MAX_PIXELS = 64_000_000
LEGIBLE = 64  # grids enlarge smaller images up to about this side, in pixels


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] to bytes, round(127.5 (x + 1)) clamped to 0..255: never truncated, never wrapped; NaN is an error."""
    assert x.is_floating_point(), f"expected floating point in [-1, 1], got {x.dtype}"
    x = x.detach().float()
    if torch.isnan(x).any():
        raise UserError("the images hold NaN: the model has diverged, sample an earlier checkpoint or train with a lower learning rate")
    return ((x + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Bytes to float32 in [-1, 1], v / 127.5 - 1; `to_uint8` gives back the same bytes."""
    assert images.dtype == torch.uint8, f"expected uint8, got {images.dtype}"
    return images.float() / 127.5 - 1


def grid(images: Tensor, columns: int | None = None, pad: int = 2, background: int = 255, scale: int | None = None) -> Tensor:
    """Many images as one: uint8 (N, C, H, W) -> (C, rows (sH + pad) + pad, columns (sW + pad) + pad), row by row.

    columns: default ceil(sqrt(N)). scale s: integer nearest-neighbor enlargement; by default small images grow to at most 64 pixels.
    """
    assert images.dtype == torch.uint8 and images.ndim == 4 and len(images) > 0, f"expected uint8 (N, C, H, W), got {tuple(images.shape)}"
    images = images.cpu()
    n, c, h, w = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    s = scale or max(1, LEGIBLE // max(h, w))
    rows = math.ceil(n / columns)
    big = images.repeat_interleave(s, 2).repeat_interleave(s, 3)  # (N, C, sH, sW)
    cells = torch.full((rows * columns, c, s * h + pad, s * w + pad), background, dtype=torch.uint8)
    cells[:n, :, pad:, pad:] = big
    sheet = cells.view(rows, columns, c, s * h + pad, s * w + pad).permute(2, 0, 3, 1, 4)  # (C, rows, h, columns, w)
    sheet = sheet.reshape(c, rows * (s * h + pad), columns * (s * w + pad))
    return torch.nn.functional.pad(sheet, (0, pad, 0, pad), value=background)


def _pil(image: Tensor) -> Image.Image:
    assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] in (1, 3), f"expected uint8 (1 or 3, H, W), got {image.shape}"
    array = image.cpu().numpy()
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def png_bytes(image: Tensor, meta: Mapping[str, str] | None = None) -> bytes:
    """A uint8 picture (C, H, W) as the bytes of a PNG file, with text fields (any Unicode) if given."""
    info = PngInfo()
    for name, text in (meta or {}).items():
        info.add_text(name, text)
    out = io.BytesIO()
    _pil(image).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def save_png(path: str | Path, image: Tensor, meta: Mapping[str, str] | None = None) -> None:
    """Write a uint8 picture (C, H, W) as PNG with text fields, aside and then renamed; folders are made."""
    write_bytes(Path(path), png_bytes(image, meta))


def save_gif(path: str | Path, frames: Sequence[Tensor], fps: float = 12.0) -> None:
    """Write uint8 pictures (C, H, W) as a GIF that repeats forever, aside and then renamed; the format counts in 1/100 s."""
    if not 0 < fps <= 50:
        raise UserError(f"a GIF cannot play {fps:g} frames per second: choose a rate above 0 and up to 50")
    first, *rest = [_pil(f) for f in frames]
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=rest, duration=round(100 / fps) * 10, loop=0)
    write_bytes(Path(path), out.getvalue())


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The bytes of a PNG, JPEG, WEBP or BMP file to uint8 (C, H, W): C = 1 where the file is grey, else 3.

    Turned upright by its EXIF orientation; transparency is laid on white; 16-bit grey keeps its high bits; of an animation, the
    first picture. UserError naming `name`: another format, more than `max_pixels`, or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: our own cap is lower
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height <= max_pixels:
                    image.load()
                    return _tensor(ImageOps.exif_transpose(image))
    except Exception as error:  # a decoder fed with damaged bytes raises OSError, SyntaxError, ValueError, struct.error, ...
        reason = " ".join(str(error).split()) if not isinstance(error, UnidentifiedImageError) else "not one of these formats"
        raise UserError(f"{name}: cannot be read as {', '.join(FORMATS)} ({reason}): replace or remove the file") from error
    raise UserError(f"{name}: {width} x {height} pixels are more than {max_pixels:,}: make the image smaller")


def _tensor(image: Image.Image) -> Tensor:
    if image.mode.startswith("I"):  # 16-bit grey
        return torch.from_numpy((np.asarray(image).astype(np.int64) * 255 + 32767) // 65535).clamp(0, 255).to(torch.uint8)[None]
    if image.has_transparency_data:
        grey = image.mode == "LA"
        clear = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, clear).convert("L" if grey else "RGB")
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    array = np.array(image)  # (H, W) or (H, W, 3)
    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1).contiguous()


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """An image file of the user's as uint8 (C, H, W); see `decode_image`. UserError naming the file if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image file: give the path of a PNG, JPEG, WEBP or BMP file")
    return decode_image(path.read_bytes(), str(path), max_pixels)
