"""Repeated images: the hash against SciPy's DCT, pairs against brute force, planted copies found, and what a survey says of them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from pixelkiln.data import ImageSet, open_source
from pixelkiln.data import twins as twinning
from pixelkiln.data.twins import BITS, CORRELATION, Pair, Prints, Twins, codes, near, thumbnails


def random_sets(num: int = 60) -> tuple[ImageSet, ImageSet]:
    """Smooth random color images, none like another."""
    gen = np.random.default_rng(0)
    coarse = gen.integers(0, 256, (2 * num, 4, 4, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in coarse])
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.arange(num) % 3
    return tuple(ImageSet(part, labels, ("a", "b", "c"), split=split) for part, split in zip(tensors.split(num), ("train", "test"), strict=True))


def find_twins(train: ImageSet, test: ImageSet | None) -> Twins:
    return twinning.find_twins(Prints.of(train), None if test is None else Prints.of(test))


def planted(images: torch.Tensor, changes: dict[int, torch.Tensor]) -> torch.Tensor:
    images = images.clone()
    for row, image in changes.items():
        images[row] = image
    return images


def test_the_hash_is_that_of_scipys_dct() -> None:
    thumbs = thumbnails(open_source("shapes", split="test").images[:50])
    luma = np.stack([np.asarray(Image.fromarray(thumb.permute(1, 2, 0).numpy()).convert("L")) for thumb in thumbs]).astype(float)
    low = dctn(luma, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(50, 64)
    expected = low > np.median(low[:, 1:], axis=1, keepdims=True)
    differ = (codes(thumbs).numpy() > 0) != expected
    assert differ.sum() == 0
    assert codes(thumbs).abs().min() == 1


def test_near_pairs_equal_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twinning, "CORRELATION", 0.95)
    thumbs = thumbnails(open_source("digits").images[:600])
    bits = codes(thumbs) > 0
    expected = set()
    for i in range(600):
        for j in range(i + 1, 600):
            if int((bits[i] != bits[j]).sum()) <= BITS and np.corrcoef(thumbs[i].flatten(), thumbs[j].flatten())[0, 1] >= 0.95:
                expected.add((i, j))
    found = {tuple(pair) for pairs, _ in near(thumbs) for pair in pairs.tolist()}
    assert found == expected
    assert found


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twinning, "CORRELATION", 0.97)
    thumbs = thumbnails(open_source("digits").images)
    whole = sorted(tuple(pair) for pairs, _ in near(thumbs) for pair in pairs.tolist())
    assert whole
    monkeypatch.setattr(twinning, "BLOCK", 97)
    assert sorted(tuple(pair) for pairs, _ in near(thumbs) for pair in pairs.tolist()) == whole


def test_copies_are_found_within_and_between_and_nothing_else() -> None:
    train, test = random_sets()
    clean = find_twins(train, test)
    assert [part.exact for part in (clean.train, clean.test, clean.between)] == [0, 0, 0]
    assert [part.near for part in (clean.train, clean.test, clean.between)] == [0, 0, 0]
    picture = Image.fromarray(train.images[5].permute(1, 2, 0).numpy())
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    brighter = ImageEnhance.Brightness(picture).enhance(0.85)
    jpeg, dark = (torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in (Image.open(buffer), brighter))
    train_images = planted(train.images, {20: train.images[2], 40: train.images[2], 41: dark})  # rows 20 and 2 have one label, 40 another
    test_images = planted(test.images, {7: train.images[9], 8: jpeg, 11: test.images[10]})
    found = find_twins(ImageSet(train_images, train.labels, train.classes), ImageSet(test_images, test.labels, test.classes))
    assert (found.train.exact, found.train.near, found.train.conflicts) == (2, 1, int(40 % 3 != 2) + int(20 % 3 != 2))
    assert [(pair.row, pair.earlier) for pair in found.train.pairs] == [(20, 2), (40, 2), (41, 5)]
    assert (found.test.exact, found.test.near) == (1, 0)
    assert found.test.pairs == (Pair(11, 10, 1.0),)
    assert (found.between.exact, found.between.near) == (1, 1)
    assert {(pair.row, pair.earlier) for pair in found.between.pairs} == {(7, 9), (8, 5), (8, 41)}
    assert all(pair.correlation >= CORRELATION for pair in found.between.pairs)


def test_another_color_or_a_mirror_image_is_no_twin() -> None:
    train, _ = random_sets(20)
    others = torch.cat([train.images, train.images.flip(1), train.images.flip(3), 255 - train.images])
    found = find_twins(ImageSet(others, None, ()), None)
    assert (found.train.exact, found.train.near, found.test, found.between) == (0, 0, None, None)


def test_plain_images_are_twins_only_if_equal() -> None:
    plain = torch.arange(0, 250, 10, dtype=torch.uint8).view(25, 1, 1, 1).expand(25, 1, 8, 8)
    found = find_twins(ImageSet(torch.cat([plain, plain[3:5]]), None, ()), None)
    assert (found.train.exact, found.train.near) == (2, 0)


def test_above_a_number_near_ones_are_not_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = random_sets(20)
    monkeypatch.setattr(twinning, "MOST", 39)
    found = find_twins(train, test)
    assert (found.train.near, found.between.near, found.train.exact) == (None, None, 0)
