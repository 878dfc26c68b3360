"""Decoding and preparing: formats, transparency, depth, orientation, limits, broken bytes, sizes and channels."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.types import UserError
from pixelkiln.data import decode as decoding
from pixelkiln.data.decode import Encoded, decode, decode_all
from pixelkiln.data.prepare import check_config, prepare, size_for, to_channels

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


def test_what_is_transparent_becomes_white() -> None:
    alpha = np.array([[0, 128, 255]], dtype=np.uint8)
    rgba = np.dstack([np.full_like(alpha, 200), np.zeros_like(alpha), np.zeros_like(alpha), alpha])
    expected = alpha[..., None] / 255 * np.array([200, 0, 0]) + (1 - alpha[..., None] / 255) * 255
    assert np.abs(decode(encoded(Image.fromarray(rgba)), AS_IS) - expected).max() <= 1
    grey = decode(encoded(Image.fromarray(np.dstack([np.zeros_like(alpha), alpha]))), AS_IS)
    assert grey.shape == (1, 3, 1)
    assert grey.flatten().tolist() == [255, 127, 0]


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert decode(encoded(image, transparency=0), AS_IS).tolist() == [[[255, 255, 255], [200, 100, 50]]]
    assert decode(encoded(image), AS_IS).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_sixteen_bits_are_scaled_and_one_bit_is_black_and_white() -> None:
    deep = np.array([[0, 257 * 3, 257 * 3 + 128, 257 * 3 + 129, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(deep)), AS_IS).flatten().tolist() == [0, 3, 3, 4, 255]
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert decode(encoded(bits), AS_IS).flatten().tolist() == [0, 255]


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(orientation: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    item = encoded(Image.fromarray(PIXELS[:12]), exif=exif)
    assert np.array_equal(decode(item, AS_IS), np.rot90(PIXELS[:12], turns))


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


@pytest.mark.parametrize("config", [DataConfig(channels=2), DataConfig(resolution=0), DataConfig(multiple=0), DataConfig(translate=-1)])
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
