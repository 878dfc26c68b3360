"""Many images as one, with titles: contact sheets and tables; walks as strips, GIFs and, where ffmpeg is there, MP4."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..core.errors import UserError
from ..core.files import writing

__all__ = ["ffmpeg", "sheet", "write_mp4"]

SIDE, PAD, LINES = 256, 6, 3  # pixels of a cell's longer side; between cells; lines of a title


def sheet(images: Mapping[int, Tensor], count: int, columns: int, titles: Sequence[str] = (), heads: Sequence[str] = (), sides: Sequence[str] = (),
          font: str | None = None) -> Tensor:
    """A table of `count` cells, row by row, as uint8 (3, H, W): images by number, missing ones grey; a title below each, a head above each column,
    words beside each row. Images are made smaller where their longer side is more than 256 pixels, never larger than that."""
    letters = _font(font)
    sizes = [tuple(image.shape[1:]) for image in images.values()] or [(SIDE, SIDE)]
    scale = min(1.0, SIDE / max(max(size) for size in sizes))
    line = int(letters.getbbox("Ág")[3]) + 2
    width, height = max(96, round(max(w for _, w in sizes) * scale)), max(LINES * line if sides else 0, round(max(h for h, _ in sizes) * scale))
    rows = -(-count // columns)
    names, tops = ([_wrapped(letters, text, width) for text in texts] for texts in (titles, heads))
    below = max(map(len, names), default=0) * line
    above = max(map(len, tops), default=0) * line + (PAD if heads else 0)
    beside = 150 if sides else 0
    page = Image.new("RGB", (beside + PAD + columns * (width + PAD), above + PAD + rows * (height + below + PAD)), "white")
    draw = ImageDraw.Draw(page)

    def write(texts: Sequence[str], x: int, y: int) -> None:
        for k, row in enumerate(texts):
            draw.text((x, y + k * line), row, fill="black", font=letters)

    for i in range(count):
        x, y = beside + PAD + (i % columns) * (width + PAD), above + PAD + (i // columns) * (height + below + PAD)
        if i in images:
            picture = Image.fromarray(images[i].permute(1, 2, 0).contiguous().numpy())
            picture.thumbnail((width, height), Image.Resampling.LANCZOS)
            page.paste(picture, (x + (width - picture.width) // 2, y))
        else:
            draw.rectangle((x, y, x + width - 1, y + height - 1), fill="lightgrey")
        if titles:
            write(names[i], x, y + height)
    for i, top in enumerate(tops):
        write(top, beside + PAD + i * (width + PAD), above - len(top) * line)
    for i, text in enumerate(sides):
        write(_wrapped(letters, text, beside - PAD, max(1, height // line)), PAD, above + PAD + i * (height + below + PAD))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1).contiguous()


def _font(path: str | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if path is None:
        return ImageFont.load_default(12)
    try:
        return ImageFont.truetype(path, 12)
    except OSError as error:
        raise UserError(f"--font {path}: cannot be read ({error}): give a .ttf or .otf file") from None


def _wrapped(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, width: int, lines: int = LINES) -> list[str]:
    """Words in lines of that many pixels; what does not fit ends in an ellipsis."""
    words, found = " ".join(text.split()), list[str]()
    while words and len(found) < lines:
        n = len(words)
        while n > 1 and font.getlength(words[:n]) > width:
            n = n - 1
        cut = words.rfind(" ", 0, n + 1) if n < len(words) else n
        n = cut if cut > 0 else n
        found.append(words[:n])
        words = words[n:].strip()
    if words and found:
        last = found[-1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        found[-1] = last + "…"
    return found


def ffmpeg() -> str | None:
    """The program that makes MP4: on the PATH, or of the package imageio-ffmpeg."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg
    except ImportError:
        return None
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None


def write_mp4(path: Path, frames: Sequence[Tensor], fps: float, program: str) -> None:
    """Frames uint8 (3, H, W) as H.264, written aside and then renamed. Errors: `UserError` where ffmpeg fails."""
    height, width = frames[0].shape[1:]
    aside = path.with_name(f".{secrets.token_hex(4)}.tmp.mp4")
    command = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-",
               "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(aside)]
    data = b"".join(frame.permute(1, 2, 0).contiguous().numpy().tobytes() for frame in frames)
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=3600)
        if done.returncode:
            raise UserError(f"{path}: ffmpeg could not write it ({done.stderr.decode(errors='replace').strip()[-200:]}): use the GIF")
        with writing(path):
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
