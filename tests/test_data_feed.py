"""Batches: what they hold, in which order, and that they depend on (seed, draw) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from pixelkiln.core import rng
from pixelkiln.core.recipe import DataConfig
from pixelkiln.core.rng import permutation
from pixelkiln.data import Feed, ImageSet, open_source
from pixelkiln.data.augment import Moves, draw_moves, mirror_text, move_boxes, move_images

NUM, SIDE = 10, 6


def numbered(num: int = NUM) -> ImageSet:
    """Image i is filled with i."""
    images = torch.arange(num, dtype=torch.uint8).view(num, 1, 1, 1).expand(num, 3, SIDE, SIDE).contiguous()
    labels = torch.arange(num) % 2
    return ImageSet(images, labels, ("even", "odd"), tuple(f"number {i} at the left" for i in range(num)))


def test_a_batch_is_a_cast_of_the_rows_that_it_names() -> None:
    data = numbered()
    batch = Feed(data, 4, DataConfig(), seed=0).batch(0)
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (4, 3, SIDE, SIDE)
    assert torch.equal(batch.x, data.images[batch.index].float() / 127.5 - 1)
    assert torch.equal(batch.cond.label, batch.index % 2)
    assert batch.cond.label.dtype == torch.int64
    assert batch.cond.text == tuple(f"number {i} at the left" for i in batch.index.tolist())
    assert batch.cond.given() == {"label", "text"}
    full = ImageSet(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), None, ())
    assert sorted(Feed(full, 2, DataConfig(), 0).batch(0).x.flatten().tolist()) == [-1, 1]


@pytest.mark.parametrize("size", [1, 3, 4, 10, 23])
def test_the_stream_is_one_permutation_an_epoch_and_batches_straddle(size: int) -> None:
    feed = Feed(numbered(), size, DataConfig(), seed=5)
    stream = torch.cat([feed.batch(draw).index for draw in range(60 // size + 1)])[:60].view(6, NUM)
    for epoch, rows in enumerate(stream):
        assert torch.equal(rows, permutation(NUM, 5, "order", epoch))
    assert len({tuple(rows.tolist()) for rows in stream}) == 6


def test_draws_depend_on_seed_and_number_alone() -> None:
    data, config = open_source("digits"), DataConfig(flip=True, translate=1)
    ahead, behind, other = (Feed(data, 32, config, seed) for seed in (1, 1, 2))
    forward = [ahead.batch(draw).x for draw in range(100)]
    torch.manual_seed(123)  # the global generator has no part in it
    state = torch.get_rng_state()
    for draw in (99, 3, 44, 45, 0):
        assert torch.equal(behind.batch(draw).x, forward[draw])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(other.batch(0).x, forward[0])


def test_a_pass_is_ordered_plain_and_ends_short() -> None:
    data = open_source("digits")
    parts = list(Feed(data, 100, DataConfig(flip=True, translate=2), seed=0).passes())
    assert [len(part.x) for part in parts] == [100] * 14 + [38]
    assert torch.equal(torch.cat([part.x for part in parts]), data.images.float() / 127.5 - 1)
    assert torch.equal(torch.cat([part.cond.label for part in parts]), data.labels)
    assert [len(part.x) for part in Feed(data, 100, DataConfig(), seed=0).passes(1000)] == [1000, 438]


def test_channels_last_changes_the_memory_and_nothing_else() -> None:
    data = numbered()
    plain, last = (Feed(data, 4, DataConfig(translate=1), 0, channels_last=flag).batch(3).x for flag in (False, True))
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()


def test_flips_and_shifts_equal_brute_force() -> None:
    gen = np.random.default_rng(0)
    images = gen.integers(0, 256, (40, 2, 5, 7), dtype=np.uint8)
    flip, shift = gen.random(40) < 0.5, gen.integers(-3, 4, (40, 2))
    moved = move_images(torch.from_numpy(images), Moves(torch.from_numpy(flip), torch.from_numpy(shift))).numpy()
    for image, mirror, (down, right), result in zip(images, flip, shift, moved, strict=True):
        expected = np.pad(image[..., ::-1] if mirror else image, ((0, 0), (3, 3), (3, 3)), mode="edge")
        assert np.array_equal(result, expected[:, 3 - down : 8 - down, 3 - right : 10 - right])


def test_moves_are_uniform_and_per_sample() -> None:
    coords = torch.arange(15, dtype=torch.uint8).view(1, 1, 1, 15).expand(2000, 1, 15, 15).contiguous()
    x = Feed(ImageSet(coords, None, ()), 2000, DataConfig(flip=True, translate=2), 0).batch(0).x
    middle = ((x[:, 0, 7, 7] + 1) * 127.5).round().long()  # 7 - shift, in a mirrored image 7 + shift
    counts = torch.bincount(middle, minlength=10)[5:10]
    assert counts.sum() == 2000
    assert counts.min() > 330
    assert counts.max() < 470
    flipped = (x[:, 0, 7, 5] > x[:, 0, 7, 9]).sum()
    assert 900 < flipped < 1100
    still = Feed(ImageSet(coords, None, ()), 50, DataConfig(translate=2), 0).batch(0).x
    assert (still[:, 0, 7, 5] < still[:, 0, 7, 9]).all()


def test_moves_change_with_the_position_and_the_seed() -> None:
    config = DataConfig(flip=True, translate=2, crop=0.5)
    keys = [(0, 0), (0, 64), (1, 0), (0, 64 * 10**9)]
    moves = [draw_moves(torch.arange(start, start + 64), config, seed) for seed, start in keys]
    for part in range(3):
        assert len({tuple(move[part].flatten().tolist()) for move in moves}) == 4
    column = torch.arange(15, dtype=torch.uint8).view(1, 1, 1, 15)
    feed = Feed(ImageSet(column, None, ()), 64, config, 0)
    assert not torch.equal(feed.batch(0).x, feed.batch(1).x)  # one image alone: only the moves can differ


ALL_MOVES = DataConfig(flip=True, crop=0.6, translate=3)


def test_a_sample_is_moved_alike_whatever_the_batch_size() -> None:
    """Sample p of the stream, for every way to cut the stream into batches (and so for every number of workers and processes)."""
    data = open_source("shapes", DataConfig(resolution=16), "test").take(torch.arange(50))
    whole = Feed(data, 240, ALL_MOVES, seed=3).batch(0)
    for size in (1, 7, 48, 100):
        feed = Feed(data, size, ALL_MOVES, seed=3)
        parts = [feed.batch(draw) for draw in reversed(range(-(-240 // size)))][::-1]
        assert torch.equal(torch.cat([part.x for part in parts])[:240], whole.x)
        assert torch.equal(torch.cat([part.cond.mask for part in parts])[:240], whole.cond.mask)
        assert torch.equal(torch.cat([part.cond.layout for part in parts])[:240], whole.cond.layout)
        assert tuple(text for part in parts for text in part.cond.text)[:240] == whole.cond.text


def test_moves_are_uniform_and_independent() -> None:
    """Chi-square and Kolmogorov-Smirnov over 40,000 positions; each would fail by chance once in 10,000 times."""
    moves = draw_moves(torch.arange(10**12, 10**12 + 40_000), ALL_MOVES, seed=11)
    shift = (moves.shift + 3).numpy()
    table = np.zeros((2, 7, 7))
    np.add.at(table, (moves.flip.long().numpy(), shift[:, 0], shift[:, 1]), 1)  # flip, down and right together: uniform and independent
    assert stats.chisquare(table.flatten()).pvalue > 1e-4
    after = np.zeros((7, 7))
    np.add.at(after, (shift[:-1, 0], shift[1:, 0]), 1)  # neighbors in the stream
    assert stats.chisquare(after.flatten()).pvalue > 1e-4
    size, top, left = moves.window.T.numpy()
    assert stats.kstest((size - 0.6) / 0.4, "uniform").pvalue > 1e-4
    assert stats.kstest(top / (1 - size), "uniform").pvalue > 1e-4
    assert stats.kstest(left / (1 - size), "uniform").pvalue > 1e-4
    together = stats.spearmanr(np.stack([size, top / (1 - size), left / (1 - size), shift[:, 0], shift[:, 1], moves.flip.numpy()], axis=1))
    assert np.abs(together.statistic - np.eye(6)).max() < 0.02


def test_uniform_is_splitmix64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first five outputs of SplitMix64 begun at 1234567, as its published implementations give them; and a loop over Python's integers."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    monkeypatch.setattr(rng, "key", lambda *parts: parts[0])
    assert rng.uniform(torch.arange(5), 1234567).tolist() == [(value >> 11) / 2**53 for value in known]
    index, mask = [0, 1, 2**40, 2**62, 2**63 - 2], 2**64 - 1
    for begin in (0, 1, 2**63 - 1):
        expected = []
        for i in index:
            z = (begin + (i + 1) * 0x9E3779B97F4A7C15) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            expected.append(((z ^ (z >> 31)) >> 11) / 2**53)
        assert rng.uniform(torch.tensor(index), begin).tolist() == expected


def test_a_window_is_cut_and_enlarged_as_scipy_samples_it() -> None:
    gen = np.random.default_rng(0)
    images = gen.integers(0, 256, (30, 2, 9, 12), dtype=np.uint8)
    moves = draw_moves(torch.arange(30), ALL_MOVES, seed=1)
    moved, near = (move_images(torch.from_numpy(images), moves, nearest=flag).numpy() for flag in (False, True))
    away = 0
    for i, (image, flip, (down, right), (size, top, left)) in enumerate(zip(images, *(part.numpy() for part in moves), strict=True)):
        y = (np.clip(np.arange(9) - down, 0, 8) + 0.5) * size + top * 9 - 0.5
        x = (np.clip(np.arange(12) - right, 0, 11) + 0.5) * size + left * 12 - 0.5
        for channel in range(2):
            source = image[channel, :, ::-1] if flip else image[channel]
            expected = ndimage.map_coordinates(source.astype(float), np.meshgrid(y, x, indexing="ij"), order=1, mode="nearest")
            assert np.abs(moved[i, channel] - expected).max() <= 0.502  # one rounding
            expected = ndimage.map_coordinates(source, np.meshgrid(y, x, indexing="ij"), order=0, mode="nearest")
            away += int((near[i, channel] != expected).sum())
    assert away <= 2  # a tie may be rounded to the other side


def test_the_whole_image_as_window_changes_nothing() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 8, 5), dtype=np.uint8))
    flip, shift = torch.arange(6) % 2 == 0, torch.randint(-2, 3, (6, 2), generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[1.0, 0, 0]], dtype=torch.float64).expand(6, 3)
    layout = torch.tensor([[[0, 0.25, 0.5, 1, 0.75], [-1, 0, 0, 0, 0]]]).expand(6, 2, 5)
    assert torch.equal(move_images(images, Moves(flip, shift)), move_images(images, Moves(flip, shift, whole)))
    assert torch.equal(move_boxes(layout, Moves(flip, shift), 8, 5), move_boxes(layout, Moves(flip, shift, whole), 8, 5))


def test_mask_and_boxes_follow_the_window() -> None:
    """The box of an object is that of its pixels in the enlarged mask, within half an original pixel (less than one new one)."""
    data = open_source("shapes", DataConfig(resolution=64), "test")
    data = data.take((data.extras["layout"][:, 1, 0] < 0).nonzero()[:200, 0])  # one object each
    batch = Feed(data, 200, DataConfig(flip=True, crop=0.5), seed=0).batch(0)
    assert set(batch.cond.mask.unique().tolist()) == {0.0, 1.0}
    wider = 0
    for mask, (kind, *box) in zip(batch.cond.mask[:, 0], batch.cond.layout[:, 0].tolist(), strict=True):
        assert (kind >= 0) == bool(mask.any())
        rows, cols = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        ends = [cols[0] / 64, rows[0] / 64, (cols[-1] + 1) / 64, (rows[-1] + 1) / 64]
        cut = any(z in (0, 1) for z in box)  # what the border cuts need not reach the other sides of its box
        assert all((e >= z - 0.02) if k < 2 else (e <= z + 0.02) for k, (e, z) in enumerate(zip(ends, box, strict=True)))
        assert cut or max(abs(e - z) for e, z in zip(ends, box, strict=True)) < 0.02
        wider += box[2] - box[0] > 0.45  # larger than any object of the source
    assert wider > 20


def test_mask_and_boxes_move_with_the_image() -> None:
    data = open_source("shapes", DataConfig(resolution=32), "test").take(torch.arange(300))
    feed = Feed(data, 300, DataConfig(flip=True, translate=6), seed=0)
    batch = feed.batch(0)
    assert batch.cond.given() == {"label", "text", "mask", "layout"}
    assert set(batch.cond.mask.unique().tolist()) == {0.0, 1.0}
    ground = data.images[batch.index, :, :1, :1].float() / 127.5 - 1
    assert (batch.x != ground).any(dim=1, keepdim=True)[batch.cond.mask == 1].all()  # a pixel of an object differs from the background
    lost = whole = 0
    for i in range(300):
        rows = [row for row in batch.cond.layout[i].tolist() if row[0] >= 0]
        lost += len(rows) < int((data.extras["layout"][batch.index[i], :, 0] >= 0).sum())
        union = torch.zeros(32, 32, dtype=torch.bool)
        for _, x0, y0, x1, y1 in rows:
            union[round(y0 * 32) : round(y1 * 32), round(x0 * 32) : round(x1 * 32)] = True
        mask = batch.cond.mask[i, 0] == 1
        assert not (mask & ~union).any()
        if not all(0 < z < 1 for row in rows for z in row[1:]):
            continue  # what the border cuts need not reach the sides of its box
        whole += 1
        columns, lines = mask.any(dim=0).nonzero().flatten(), mask.any(dim=1).nonzero().flatten()
        assert columns[0] == min(round(r[1] * 32) for r in rows)
        assert columns[-1] + 1 == max(round(r[3] * 32) for r in rows)
        assert lines[0] == min(round(r[2] * 32) for r in rows)
        assert lines[-1] + 1 == max(round(r[4] * 32) for r in rows)
    assert lost < 10
    assert whole > 100


def test_a_box_that_leaves_the_image_becomes_padding_and_one_at_the_border_stays() -> None:
    layout = torch.tensor([[[2, 0.0, 0.5, 0.25, 0.75], [1, 0.5, 0.0, 1.0, 1.0]]])
    moves = Moves(torch.tensor([False]), torch.tensor([[0, -2]]))
    assert move_boxes(layout, moves, 8, 8)[0].tolist() == [[-1, 0, 0, 0, 0], [1, 0.25, 0, 1, 1]]
    mirrored = move_boxes(layout, Moves(torch.tensor([True]), torch.tensor([[0, 0]])), 8, 8)
    assert mirrored[0].tolist() == [[2, 0.75, 0.5, 1, 0.75], [1, 0, 0, 0.5, 1]]


def test_a_flip_changes_left_and_right_in_the_caption() -> None:
    assert mirror_text("Left hand, a copyright to the right of it") == "Right hand, a copyright to the left of it"
    batch = Feed(numbered(), 400, DataConfig(flip=True), seed=0).batch(0)
    right = sum(text.endswith("right") for text in batch.cond.text)
    assert 140 < right < 260


def test_take_and_digest() -> None:
    data = numbered()
    part = data.take(torch.tensor([3, 1]))
    assert part.images[:, 0, 0, 0].tolist() == [3, 1]
    assert part.labels.tolist() == [1, 1]
    assert part.texts[0].startswith("number 3")
    assert data.digest() == numbered().digest()
    assert len(data.digest()) == 64
    changed = data.images.clone()
    changed[0, 0, 0, 0] ^= 1
    others = [
        ImageSet(changed, data.labels, data.classes),
        ImageSet(data.images, 1 - data.labels, data.classes),
        ImageSet(data.images, data.labels, ("odd", "even")),
        ImageSet(data.images, None, ()),
        ImageSet(data.images.view(NUM, 3, SIDE * SIDE, 1), data.labels, data.classes),
    ]
    assert len({other.digest() for other in others} | {data.digest()}) == 6
