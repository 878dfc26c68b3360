"""Images in and out: [-1, 1] to 8 bits and back, grids, PNG, GIF, and a reader that trusts no file.

Pictures are uint8 (C, H, W) tensors, C = 1 (grey) or 3 (RGB); batches are (N, C, H, W).
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .config import nearest
from .files import write_bytes
from .types import UserError

__all__ = ["color", "decode_image", "flatten", "from_uint8", "grid", "luma", "png_bytes", "read_image", "read_texts", "save_gif", "save_png", "to_uint8"]

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


def color(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0..255, of a color of CSS: a name, #rgb or #rrggbb. UserError with the nearest names for anything else."""
    if not (text.lower() in ImageColor.colormap or re.fullmatch("#([0-9a-fA-F]{3}){1,2}", text)):
        raise UserError(f"no color {text!r}: give its name or #rrggbb; {nearest(text.lower(), ImageColor.colormap)}")
    red, green, blue = ImageColor.getrgb(text)[:3]
    return red, green, blue


def flatten(image: Image.Image, channels: int | None = None, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """A picture as `Image.open` gives it, upright (EXIF), in mode L or RGB, with what is transparent laid on the background.

    channels: 1 or 3; None keeps grey pictures grey, on the background's luma. Bytes are mixed, alpha v + (1 - alpha) b, not light. 16-bit
    grey is rounded; of 16-bit color the high bytes are taken; CMYK becomes (1 - C)(1 - K), ...; color profiles are ignored.
    """
    tiles = getattr(image, "tile", [])
    raw = str(tiles[0].args) if image.format == "PNG" and tiles else ""  # how the file has its pixels; forgotten once loaded
    ImageOps.exif_transpose(image, in_place=True)
    grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I") or raw.startswith("LA")
    clear = image.info.get("transparency")  # the value that is transparent, as the file has it; Pillow looks for it among 8-bit values
    if isinstance(clear, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[raw]
    elif isinstance(clear, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.mode.startswith("I"):  # 16 bits: 65535 = 255 * 257
        deep = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((deep + 128) // 257).clip(0, 255).astype(np.uint8))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if grey and channels != 3:
            background = (luma(background),) * 3
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")
    mode = {None: "L" if grey else "RGB", 1: "L", 3: "RGB"}[channels]
    return image if image.mode == mode else image.convert(mode)


def luma(rgb: tuple[int, int, int]) -> int:
    """0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in 16-bit fixed point, as Pillow's mode L."""
    return (rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The bytes of a PNG, JPEG, WEBP or BMP file to uint8 (C, H, W): C = 1 where the file is grey, else 3; on white, as `flatten` says.

    Of an animation, the first picture. UserError naming `name`: another format, more than `max_pixels`, or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: our own cap is lower
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height <= max_pixels:
                    array = np.array(flatten(image))  # (H, W) or (H, W, 3)
                    return torch.from_numpy(array)[None] if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1).contiguous()
    except Exception as error:  # a decoder fed with damaged bytes raises OSError, SyntaxError, ValueError, struct.error, ...
        reason = " ".join(str(error).split()) if not isinstance(error, UnidentifiedImageError) else "not one of these formats"
        raise UserError(f"{name}: cannot be read as {', '.join(FORMATS)} ({reason}): replace or remove the file") from error
    raise UserError(f"{name}: {width} x {height} pixels are more than {max_pixels:,}: make the image smaller")


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """An image file of the user's as uint8 (C, H, W); see `decode_image`. UserError naming the file if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image file: give the path of a PNG, JPEG, WEBP or BMP file")
    return decode_image(path.read_bytes(), str(path), max_pixels)


def read_texts(path: str | Path) -> dict[str, str]:
    """The text fields of a PNG file. UserError naming the file if it is missing, damaged, or no PNG."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such image file: give the path of a PNG")
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG",)) as image:
            image.load()
            return {str(name): str(text) for name, text in getattr(image, "text", {}).items()}
    except Exception as error:  # as in `decode_image`
        raise UserError(f"{path}: cannot be read as PNG ({' '.join(str(error).split())[:120]}): give the original file") from error
