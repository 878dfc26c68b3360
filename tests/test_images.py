"""Bytes and back, grids, files that are whole or absent, and a reader that survives damaged files. Oracles: numpy and Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pixelkiln.core import images
from pixelkiln.core.images import from_uint8, grid, png_bytes, read_image, save_gif, save_png, to_uint8
from pixelkiln.core.types import UserError


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_byte_survives_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert from_uint8(every).min() == -1 and from_uint8(every).max() == 1


@pytest.mark.parametrize(
    ("value", "byte"),
    [(-1.0, 0), (1.0, 255), (1.01, 255), (-1.01, 0), (300.0, 255), (-300.0, 0), (float("inf"), 255), (0.5, 191), (0.0, 128), (-0.007, 127)],
)
def test_bytes_are_rounded_and_never_wrap(value, byte):
    assert to_uint8(torch.full((1, 1, 1, 1), value)).item() == byte


def test_rounding_is_unbiased():
    x = torch.rand(1, 1, 400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    error = to_uint8(x).double() - (x + 1) * 127.5
    assert error.abs().max() <= 0.5 + 1e-4 and abs(error.mean()) < 0.01  # truncation would give -0.5


def test_low_precision_is_raised_before_the_arithmetic():
    x = from_uint8(noise(1, 3, 8, 8)).bfloat16()
    assert torch.equal(to_uint8(x), to_uint8(x.float()))


def test_nan_is_an_error_and_not_black():
    with pytest.raises(UserError, match="NaN"):
        to_uint8(torch.tensor([[[[float("nan")]]]]))


@pytest.mark.parametrize(("n", "columns", "pad", "scale"), [(7, 3, 2, 1), (7, None, 1, 2), (1, 1, 0, 3), (4, 4, 0, None), (5, 9, 3, None)])
def test_grid_against_loops(n, columns, pad, scale):
    batch = noise(n, 3, 20, 12)
    sheet = grid(batch, columns, pad, background=7, scale=scale)
    c, s = columns or int(np.ceil(np.sqrt(n))), scale or 3  # 64 // 20
    rows = -(-n // c)
    expected = np.full((3, rows * (20 * s + pad) + pad, c * (12 * s + pad) + pad), 7, np.uint8)
    for i, image in enumerate(batch.numpy()):
        y, x = pad + i // c * (20 * s + pad), pad + i % c * (12 * s + pad)
        expected[:, y : y + 20 * s, x : x + 12 * s] = np.kron(image, np.ones((1, s, s), np.uint8))
    assert np.array_equal(sheet.numpy(), expected)


def test_grid_enlarges_small_images_only():
    assert grid(noise(1, 1, 8, 8), pad=0).shape == (1, 64, 64)
    assert grid(noise(1, 1, 28, 28), pad=0).shape == (1, 56, 56)
    assert grid(noise(1, 3, 128, 128), pad=0).shape == (3, 128, 128)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_pixels_and_the_text(tmp_path, channels):
    image, path = noise(channels, 9, 13), tmp_path / "new" / "a.png"
    save_png(path, image, {"command": "pixelkiln sample", "label": "猫 é"})
    assert torch.equal(read_image(path), image)
    with Image.open(path) as file:
        assert file.text == {"command": "pixelkiln sample", "label": "猫 é"}
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, noise(1, 4, 4))
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        save_png(path, noise(3, 5, 5))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_gif_plays_all_frames_at_the_rate(tmp_path):
    frames = [torch.full((3, 8, 8), 20 * k, dtype=torch.uint8) for k in range(5)]
    save_gif(tmp_path / "w.gif", frames, fps=10)
    with Image.open(tmp_path / "w.gif") as file:
        assert (file.n_frames, file.info["duration"], file.info["loop"]) == (5, 100, 0)
        for k in range(5):
            file.seek(k)
            assert np.array(file.convert("RGB")).mean() == pytest.approx(20 * k, abs=2)
    with pytest.raises(UserError, match="frames per second"):
        save_gif(tmp_path / "x.gif", frames, fps=0)


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_reads_lossless_formats_whatever_the_name(tmp_path, kind):
    array = noise(3, 10, 6).permute(1, 2, 0).numpy()
    path = tmp_path / "picture.jpg"  # the bytes tell the format, not the name
    path.write_bytes(stored(Image.fromarray(array), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), array)


def test_transparency_lies_on_white_and_16_bits_keep_the_high_ones(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(stored(Image.new("RGBA", (4, 4), (200, 0, 0, 0)), "PNG"))
    assert torch.equal(read_image(path), torch.full((3, 4, 4), 255, dtype=torch.uint8))
    path.write_bytes(stored(Image.new("LA", (4, 4), (0, 128)), "PNG"))
    assert read_image(path).shape == (1, 4, 4) and read_image(path)[0, 0, 0].item() in (126, 127, 128)
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)  # 257 v is v in 8 bits
    path.write_bytes(stored(Image.fromarray(deep), "PNG"))
    assert read_image(path).flatten().tolist() == [0, 1, 128, 255]
    path.write_bytes(stored(Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 3).convert("P"), "PNG"))
    assert read_image(path).shape == (3, 4, 4)  # a palette may hold colors


def test_photographs_are_turned_upright(tmp_path):
    array = np.zeros((4, 8), np.uint8)
    array[:, 4:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: rotate by 90 degrees
    path = tmp_path / "a.jpg"
    path.write_bytes(stored(Image.fromarray(array), "JPEG", exif=exif))
    image = read_image(path)
    assert image.shape == (1, 8, 4) and image[0, 0].float().mean() < 20 and image[0, -1].float().mean() > 235


def test_damaged_files_are_named_in_one_line(tmp_path):
    """Bytes are cut and changed at random: a picture or one UserError line comes out, never anything else."""
    path, rng = tmp_path / "bad.png", np.random.default_rng(0)
    picture = Image.fromarray(noise(3, 16, 16).permute(1, 2, 0).numpy())
    refused = 0
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = stored(picture, kind)
        for _ in range(40):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 6):
                data[place] = rng.integers(256)
            path.write_bytes(bytes(data[: rng.integers(1, len(data))]))
            try:
                read_image(path, max_pixels=10_000)
            except UserError as error:
                refused += 1
                assert "bad.png" in str(error) and "\n" not in str(error)
    assert refused > 100


def test_other_formats_bombs_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(stored(Image.new("L", (4, 4)), "GIF"))
    with pytest.raises(UserError, match=r"a\.png: cannot be read as PNG, JPEG, WEBP, BMP"):
        read_image(path)
    path.write_bytes(stored(Image.new("L", (200, 200)), "PNG"))
    with pytest.raises(UserError, match=r"a\.png: 200 x 200 pixels are more than 30,000"):
        read_image(path, max_pixels=30_000)
    bomb = bytearray(png_bytes(noise(1, 4, 4)))
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2  # the header promises 2.5 billion pixels
    path.write_bytes(bytes(bomb))
    with pytest.raises(UserError, match=r"a\.png"):
        read_image(path)
    with pytest.raises(UserError, match="no such image file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="no such image file"):
        read_image(tmp_path)


def test_exported_names_exist_and_are_sorted():
    assert images.__all__ == sorted(images.__all__) and all(hasattr(images, name) for name in images.__all__)
