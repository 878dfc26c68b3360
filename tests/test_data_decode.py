"""Decoding and preparing: formats, transparency, depth, orientation, limits, broken bytes, sizes and channels."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import UserError
from pixelkiln.data import decode as decoding
from pixelkiln.data.decode import Encoded, decode, decode_all
from pixelkiln.data.prepare import check_config, prepare, size_for, to_channels
from pixelkiln.engine.measure import reference

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
AS_IS = DataConfig()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> Encoded:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return Encoded("it", buffer.getvalue())


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_the_pixels_back(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(PIXELS), kind, **options), AS_IS), PIXELS)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_channels_follow_the_config_else_the_source(channels: int | None) -> None:
    config = DataConfig(channels=channels)
    grey = decode(encoded(Image.fromarray(PIXELS[..., 0])), config)
    color = decode(encoded(Image.fromarray(PIXELS)), config)
    assert (grey.shape[2], color.shape[2]) == (channels or 1, channels or 3)
    assert all(np.array_equal(grey[..., c], PIXELS[..., 0]) for c in range(grey.shape[2]))
    luma = np.array([0.299, 0.587, 0.114])
    expected = PIXELS @ luma if channels == 1 else PIXELS
    assert np.abs(color.squeeze() - expected).max() <= 0.51


def test_jpeg_is_what_pillow_decodes_and_cmyk_becomes_rgb() -> None:
    smooth = np.add.outer(np.arange(20), np.arange(20)).astype(np.uint8) * 6
    image = Image.fromarray(np.stack([smooth, smooth[::-1], smooth.T], axis=-1))
    item = encoded(image, "JPEG", quality=95)
    assert np.array_equal(decode(item, AS_IS), np.asarray(Image.open(BytesIO(item.source))))
    cmyk = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), AS_IS)
    assert cmyk.shape == (8, 8, 3)
    assert np.abs(cmyk.astype(int) - [255, 0, 0]).max() < 12


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray, depth: int, color: int, transparent: tuple[int, ...] = ()) -> Encoded:
    """A PNG by its specification (W3C PNG, third edition), without Pillow: samples (H, W, C) of `depth` bits; tRNS as 16-bit values."""
    height, width, channels = samples.shape
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = ((samples.reshape(height, -1, 1).astype(np.uint8) >> np.arange(depth)[::-1]) & 1).reshape(height, -1)
        rows = [np.packbits(row).tobytes() for row in bits]
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    clear = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return Encoded("it", b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + clear + data + chunk(b"IEND", b""))


def bmp_with_alpha(rgba: np.ndarray) -> bytes:
    """A BMP with a BITMAPV4HEADER, which says that the fourth byte is alpha (in the older header it has no meaning)."""
    height, width = rgba.shape[:2]
    pixels = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<4I4s36s3I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, b"BGRs", bytes(36), 0, 0, 0)
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "#e08040": (224, 128, 64), "#08f": (0, 136, 255), "RebeccaPurple": (102, 51, 153)}


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_transparency_is_laid_on_the_background(kind: str, background: str) -> None:
    rgba = np.random.default_rng(2).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[0, :, 3] = np.arange(16) * 17
    config, ground = DataConfig(background=background), np.array(BACKGROUNDS[background])
    alpha = rgba[..., 3:] / 255
    expected = alpha * rgba[..., :3] + (1 - alpha) * ground
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    item = Encoded("it", bmp_with_alpha(rgba)) if kind == "BMP" else encoded(Image.fromarray(rgba), kind, **options)
    assert np.abs(decode(item, config) - expected).max() <= 1
    grey = decode(item, replace(config, channels=1))[..., 0]
    assert np.abs(grey - expected @ [0.299, 0.587, 0.114]).max() <= 1.6


@pytest.mark.parametrize("background", ["white", "black"])
def test_real_images_are_measured_on_the_background_of_the_run(background: str, tmp_path: Path) -> None:
    for i in range(20):
        Image.new("RGBA", (4, 4), (i, i, i, 0)).save(tmp_path / f"{i:02d}.png")
    stage = SimpleNamespace(data=DataConfig(background=background, resolution=2))
    for part in reference(str(tmp_path), SimpleNamespace(opened=SimpleNamespace(stage=stage))):
        assert part.images.shape[1:] == (3, 4, 4)
        assert part.images.unique().tolist() == [0 if background == "black" else 255]


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_with_alpha_stays_grey_on_the_lumas_background(depth: int) -> None:
    top = 2**depth - 1
    samples = np.random.default_rng(3).integers(0, top + 1, (9, 9, 2))
    value, alpha = (samples[..., i] / top for i in (0, 1))
    for background, rgb in BACKGROUNDS.items():
        found = decode(png(samples, depth, 4), DataConfig(background=background))
        assert found.shape == (9, 9, 1)
        assert np.abs(found[..., 0] - 255 * alpha * value - (1 - alpha) * (np.array(rgb) @ [0.299, 0.587, 0.114])).max() <= 2
        color = decode(png(samples, depth, 4), DataConfig(background=background, channels=3))
        assert np.abs(color - (255 * alpha * value)[..., None] - (1 - alpha)[..., None] * np.array(rgb)).max() <= 2


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_with_and_without_a_transparent_value(depth: int) -> None:
    top = 2**depth - 1
    samples = np.random.default_rng(4).integers(0, top + 1, (11, 13, 1))
    expected = samples[..., 0] * 255 / top
    assert np.abs(decode(png(samples, depth, 0), AS_IS)[..., 0] - expected).max() <= 0.5
    for clear in (0, top, int(samples[5, 5, 0])):
        found = decode(png(samples, depth, 0, (clear,)), DataConfig(background="#505050"))[..., 0]
        assert np.abs(found - np.where(samples[..., 0] == clear, 80, expected)).max() <= 0.5


def test_sixteen_bit_colors_keep_their_high_bytes() -> None:
    samples = np.random.default_rng(5).integers(0, 2**16, (8, 8, 4))
    assert np.array_equal(decode(png(samples[..., :3], 16, 2), AS_IS), samples[..., :3] >> 8)
    alpha = samples[..., 3:] / 65535
    assert np.abs(decode(png(samples, 16, 6), AS_IS) - alpha * samples[..., :3] / 257 - (1 - alpha) * 255).max() <= 2
    found = decode(png(samples[..., :3], 16, 2, tuple(samples[2, 3, :3])), DataConfig(background="black"))
    assert found[2, 3].tolist() == [0, 0, 0]
    assert np.array_equal(found[:2], samples[:2, :, :3] >> 8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_with_an_alpha_for_each_entry(bits: int) -> None:
    gen = np.random.default_rng(6)
    colors, alphas = gen.integers(0, 256, (2**bits, 3)), gen.integers(0, 256, 2**bits)
    index = gen.integers(0, 2**bits, (10, 10, 1))
    plain = png(index, bits, 3).source
    assert isinstance(plain, bytes)
    start = plain.index(b"IDAT") - 4
    with_alpha = chunk(b"PLTE", colors.astype(np.uint8).tobytes()) + chunk(b"tRNS", alphas.astype(np.uint8).tobytes())
    found = decode(Encoded("it", plain[:start] + with_alpha + plain[start:]), DataConfig(background="#08f"))
    share = alphas[index[..., 0], None] / 255
    assert np.abs(found - share * colors[index[..., 0]] - (1 - share) * [0, 136, 255]).max() <= 1


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert decode(encoded(image, transparency=0), AS_IS).tolist() == [[[255, 255, 255], [200, 100, 50]]]
    assert decode(encoded(image), AS_IS).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_inks_multiply_and_photoshops_are_upside_down() -> None:
    """CMYK JPEG with Adobe's marker holds 255 - ink; with transform 2 in the marker (YCCK) the same bytes are read as Y, Cb, Cr, 255 - K."""
    for inks in ([0, 255, 255, 0], [40, 90, 200, 60], [0, 0, 0, 255], [128, 128, 128, 128]):
        c, m, y, k = (ink / 255 for ink in inks)
        item = encoded(Image.new("CMYK", (8, 8), tuple(inks)), "JPEG", quality=100, subsampling=0)
        assert np.abs(decode(item, AS_IS)[4, 4] - 255 * (1 - k) * (1 - np.array([c, m, y]))).max() <= 2
        assert isinstance(item.source, bytes)
        marker = item.source.index(b"Adobe") + 11
        assert item.source[marker] == 0
        luma, cb, cr, light = (255 - ink for ink in inks)  # ITU-T T.871 turns the first three into R, G, B; those are 255 - C, 255 - M, 255 - Y
        rgb = [luma + 1.402 * (cr - 128), luma - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), luma + 1.772 * (cb - 128)]
        expected = light / 255 * (255 - np.clip(rgb, 0, 255))
        ycck = decode(Encoded("it", item.source[:marker] + b"\2" + item.source[marker + 1 :]), AS_IS)[4, 4]
        assert np.abs(ycck - expected).max() <= 3


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.32, tag 0x0112: which sides of the picture the first row and the first column of the file are."""
    row, column = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[orientation]
    if row in "lr":
        pixels, row, column = pixels.swapaxes(0, 1), column, row
    pixels = pixels[::-1] if row == "b" else pixels
    return pixels[:, ::-1] if column == "r" else pixels


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_all_exif_orientations(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.add.outer(np.arange(16) * 9, np.arange(24) * 4)[..., None] + np.array([0, 10, 20])
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[kind]
    item = encoded(Image.fromarray(smooth.astype(np.uint8)), kind, exif=exif, **options)
    assert np.abs(decode(item, AS_IS).astype(int) - turned(smooth, orientation)).max() <= (3 if kind == "JPEG" else 0)
    if kind == "PNG":
        deep = Image.fromarray((smooth[..., 0] * 257).astype(np.uint16))
        assert np.array_equal(decode(encoded(deep, exif=exif), AS_IS)[..., 0], turned(smooth[..., 0], orientation))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_picture_is_taken(kind: str) -> None:
    frames = [Image.fromarray(PIXELS), Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")]
    item = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(BytesIO(item.source)) as image:
        assert image.n_frames == 3
    assert np.array_equal(decode(item, AS_IS), PIXELS)


def test_a_file_with_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = encoded(Image.fromarray(PIXELS))
    assert isinstance(item.source, bytes)
    (tmp_path / "a.png").write_bytes(item.source)
    monkeypatch.setattr(decoding, "MAX_BYTES", len(item.source))
    assert np.array_equal(decode(item, AS_IS), PIXELS)
    monkeypatch.setattr(decoding, "MAX_BYTES", len(item.source) - 1)
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("opened"))
    for part in (item, Encoded("it", tmp_path / "a.png")):
        with pytest.raises(UserError, match=r"^it has more than 0 MiB"):
            decode(part, AS_IS)


@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40), (30, 29), (7, 50), (1, 64), (24, 24)])
@pytest.mark.parametrize("channels", [1, 3])
def test_letterbox_and_pad_keep_the_whole_image(height: int, width: int, channels: int) -> None:
    """A white image within the square: its sides, where it lies and what surrounds it, for files and for tensors."""
    image = torch.full((1, channels, height, width), 200, dtype=torch.uint8)
    image[..., 0, :] = image[..., :, 0] = 40  # the first row and column
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy().squeeze(-1) if channels == 1 else image[0].permute(1, 2, 0).numpy())
    inner = (20, max(1, round(20 * width / height))) if height > width else (max(1, round(20 * height / width)), 20)
    assert abs(inner[1] / inner[0] / (width / height) - 1) < 0.51 / min(inner) or min(inner) == 1  # its own aspect, to the nearest pixel
    top, left = (20 - inner[0]) // 2, (20 - inner[1]) // 2
    small = np.asarray(picture.resize(inner[::-1], Image.Resampling.BICUBIC)).reshape(*inner, channels).astype(int)
    for fit in ("letterbox", "pad"):
        config = DataConfig(resolution=20, fit=fit, background="#e08040")
        around = ((top, 20 - inner[0] - top), (left, 20 - inner[1] - left), (0, 0))
        expected = np.pad(small, around, mode="edge") if fit == "pad" else np.pad(small, around, constant_values=-1)
        expected = np.where(expected < 0, [224, 128, 64] if channels == 3 else [149], expected)
        for found in (decode(encoded(picture), config), prepare(image, config)[0].permute(1, 2, 0).numpy()):
            assert found.shape == (20, 20, channels)
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_letterboxed_grey_image_has_colored_bars_among_colors() -> None:
    config = DataConfig(resolution=8, fit="letterbox", background="red", channels=3)
    for found in (prepare(torch.zeros(1, 1, 4, 8, dtype=torch.uint8), config)[0].permute(1, 2, 0).numpy(), decode(encoded(Image.new("L", (8, 4))), config)):
        assert found[:2].reshape(-1, 3).tolist() == [[255, 0, 0]] * 16
        assert not found[2:6].any()


def test_a_center_square_is_cropped_and_resized_as_tensors_are() -> None:
    wide = np.concatenate([np.zeros((20, 5, 3), np.uint8), PIXELS, np.zeros((20, 6, 3), np.uint8)], axis=1)
    config = DataConfig(resolution=20)
    assert np.array_equal(decode(encoded(Image.fromarray(wide)), config), PIXELS)
    tensor = prepare(torch.from_numpy(wide).permute(2, 0, 1)[None], config)
    assert torch.equal(tensor[0].permute(1, 2, 0), torch.from_numpy(PIXELS))


@pytest.mark.parametrize("side", [7, 10, 13, 32, 47])
def test_tensor_resizing_agrees_with_pillow(side: int) -> None:
    """Where nothing overshoots: Pillow resizes along one axis, rounds and clamps, then along the other."""
    config, mild = DataConfig(resolution=side), PIXELS // 2 + 64
    ours = prepare(torch.from_numpy(mild).permute(2, 0, 1)[None], config)[0].permute(1, 2, 0).numpy().astype(int)
    theirs = np.asarray(Image.fromarray(mild).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert np.abs(decode(encoded(Image.fromarray(mild)), config) - theirs).max() == 0


def test_downsizing_is_antialiased_for_files_and_jpeg_at_a_reduced_scale() -> None:
    """A checkerboard of single pixels is grey at a quarter of its size; taking every fourth pixel would give black or white."""
    board = Image.fromarray((np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8))
    for kind in ("PNG", "JPEG"):
        small = decode(encoded(board, kind), DataConfig(resolution=32)).astype(int)
        assert small.shape == (32, 32, 1)
        assert np.abs(small - 127.5).max() < 3


def test_luma_of_tensors_equals_pillow() -> None:
    expected = np.asarray(Image.fromarray(PIXELS).convert("L"))
    assert np.array_equal(to_channels(torch.from_numpy(PIXELS).permute(2, 0, 1)[None], 1)[0, 0].numpy(), expected)


@pytest.mark.parametrize(
    ("config", "native", "expected"),
    [
        (DataConfig(), (28, 28), (28, 28)),
        (DataConfig(at_least=32), (28, 28), (32, 32)),
        (DataConfig(at_least=32), (48, 48), (48, 48)),
        (DataConfig(multiple=8), (28, 28), (32, 32)),
        (DataConfig(multiple=8), (32, 32), (32, 32)),
        (DataConfig(resolution=20, multiple=16), (64, 64), (32, 32)),
        (DataConfig(resolution=8, at_least=16), (64, 48), (16, 16)),
        (DataConfig(), (20, 30), (20, 30)),
        (DataConfig(at_least=40, multiple=16), (20, 30), (48, 64)),
    ],
)
def test_size_follows_resolution_then_at_least_then_multiple(
    config: DataConfig, native: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert size_for(*native, config) == expected
    images = torch.zeros((2, 1, *native), dtype=torch.uint8)
    assert prepare(images, config).shape == (2, 1, *expected)
    item = encoded(Image.new("L", native[::-1]))
    assert decode_all([item, item], config).shape == (2, 1, *expected)


def test_constant_images_stay_constant_when_resized() -> None:
    images = torch.tensor([0, 1, 127, 254, 255], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    assert torch.equal(prepare(images, DataConfig(resolution=32))[..., 0, 0], images[..., 0, 0])


@pytest.mark.parametrize("config", [
    DataConfig(channels=2), DataConfig(resolution=0), DataConfig(multiple=0), DataConfig(translate=-1), DataConfig(crop=0.0), DataConfig(crop=1.5),
    DataConfig(crop=float("nan")), DataConfig(fit="squeeze"), DataConfig(background="whit"), DataConfig(background="#12345"), DataConfig(background="hsl(0,100%,50%)"),
])
def test_a_config_that_makes_no_sense_is_refused(config: DataConfig) -> None:
    with pytest.raises(UserError, match=r"^--data\.\w+"):
        check_config(config)


def test_a_grey_image_among_colored_ones_is_repeated() -> None:
    items = [encoded(Image.fromarray(PIXELS[..., 0])), encoded(Image.fromarray(PIXELS))]
    images = decode_all(items, AS_IS)
    assert images.shape == (2, 3, 20, 20)
    assert torch.equal(images[0], torch.from_numpy(PIXELS[..., 0]).expand(3, 20, 20))
    assert torch.equal(images[1], torch.from_numpy(PIXELS).permute(2, 0, 1))


def test_different_sizes_need_a_resolution() -> None:
    items = [Encoded("a.png", encoded(Image.new("L", (8, 8))).source), Encoded("b.png", encoded(Image.new("L", (9, 8))).source)]
    with pytest.raises(UserError, match=r"a\.png is 8x8 but b\.png is 9x8: pass --data\.resolution"):
        decode_all(items, AS_IS)
    assert decode_all(items, DataConfig(resolution=8)).shape == (2, 1, 8, 8)


def test_order_is_kept_across_threads() -> None:
    items = [encoded(Image.new("L", (2, 2), i)) for i in range(200)]
    assert decode_all(items, AS_IS)[:, 0, 0, 0].tolist() == list(range(200))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO"])
def test_other_parsers_stay_closed_whatever_the_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.new("RGB", (16, 16)).save(path, kind)
    with pytest.raises(UserError, match=r"picture\.png is not a PNG, JPEG, WebP or BMP"):
        decode(Encoded(str(path), path), AS_IS)


@pytest.mark.parametrize("cap", [399, 150])  # above it, and so far above that Pillow's own limit speaks first
def test_too_many_pixels_are_refused_before_decoding(cap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    item = encoded(Image.fromarray(PIXELS))
    monkeypatch.setattr(decoding, "MAX_PIXELS", cap)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150 if cap == 150 else 10**6)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"^it has more than .* million pixels"):
        decode_all([item], AS_IS)


def variants() -> dict[str, bytes]:
    """One small file of every kind that is read."""
    gen = np.random.default_rng(7)
    rgba = Image.fromarray(gen.integers(0, 256, (24, 24, 4), dtype=np.uint8))
    palette = rgba.convert("RGB").quantize(16)
    items = {
        "png": encoded(Image.fromarray(PIXELS)), "png-rgba": encoded(rgba), "png-palette": encoded(palette, transparency=3),
        "png-16": png(gen.integers(0, 2**16, (24, 24, 1)), 16, 0), "png-rgb16": png(gen.integers(0, 2**16, (24, 24, 3)), 16, 2),
        "png-la": png(gen.integers(0, 256, (24, 24, 2)), 8, 4), "png-1": png(gen.integers(0, 2, (24, 24, 1)), 1, 0),
        "apng": encoded(rgba, save_all=True, append_images=[rgba.rotate(90)]),
        "jpeg": encoded(Image.fromarray(PIXELS), "JPEG"), "jpeg-progressive": encoded(Image.fromarray(PIXELS), "JPEG", progressive=True),
        "jpeg-cmyk": encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"), "jpeg-grey": encoded(Image.fromarray(PIXELS).convert("L"), "JPEG"),
        "webp": encoded(Image.fromarray(PIXELS), "WEBP"), "webp-lossless": encoded(rgba, "WEBP", lossless=True),
        "webp-animated": encoded(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(90)]),
        "bmp": encoded(Image.fromarray(PIXELS), "BMP"), "bmp-palette": encoded(palette, "BMP"), "bmp-rgba": Encoded("it", bmp_with_alpha(np.asarray(rgba))),
    }
    return {name: item.source for name, item in items.items() if isinstance(item.source, bytes)}


@pytest.mark.parametrize("name", variants())
@pytest.mark.filterwarnings("ignore")
def test_every_kind_cut_short_or_mutated_gives_pixels_or_one_line(name: str) -> None:
    data, rng = np.frombuffer(variants()[name], dtype=np.uint8), np.random.default_rng(8)
    config = DataConfig(resolution=16, fit="letterbox")
    assert decode(Encoded("it", data.tobytes()), config).shape[:2] == (16, 16)
    cut = [data[: len(data) * share // 8] for share in range(8)]
    mutants = [data.copy() for _ in range(80)]
    for mutant in mutants:
        mutant[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
    refused = 0
    for part in [*cut, *mutants]:
        try:
            assert decode(Encoded("it", part.tobytes()), config).shape[:2] == (16, 16)
        except UserError as error:
            refused += 1
            assert re.fullmatch(r"it (cannot|is not|has more).*", str(error))
    assert refused >= 4


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("BMP", {})])
def test_truncated_images_are_one_clear_line(kind: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(PIXELS), kind, **options).source
    assert isinstance(data, bytes)
    with pytest.raises(UserError, match=r"^it (cannot be decoded|is not a)") as caught:
        decode(Encoded("it", data[: len(data) * 2 // 3]), AS_IS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("BMP", {})])
@pytest.mark.filterwarnings("ignore")  # decode_all silences Pillow's remarks; here decode is called by itself
def test_mutated_bytes_give_pixels_or_a_clear_error(kind: str, options: dict[str, object]) -> None:
    rng = np.random.default_rng(1)
    data = np.frombuffer(encoded(Image.fromarray(PIXELS), kind, **options).source, dtype=np.uint8)
    refused = 0
    for _ in range(150):
        mutant = data.copy()
        mutant[rng.integers(0, min(len(data), 120), 3)] = rng.integers(0, 256, 3)
        try:
            message = str(decode(Encoded("it", mutant.tobytes()), AS_IS).dtype)
        except UserError as error:
            message, refused = str(error), refused + 1
        assert message == "uint8" or re.fullmatch(r"it (cannot|is not|has more).*", message)
    assert refused > 0
