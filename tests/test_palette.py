"""Maps from sources, masks, and what the network is shown, without training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.transform import downscale_local_mean

from pixelkiln.core.images import from_uint8
from pixelkiln.core.types import Ability, Batch, Condition, DataInfo, ImageShape, Moment, Request, UserError
from pixelkiln.methods.palette import Palette, PaletteConfig, Task, colorize, inpaint, random_masks, upscale
from pixelkiln.nets.unet import UNetConfig

NET = UNetConfig(width=16, mults=(1, 2), blocks=1, attention=(), patch=1)
SHAPE = ImageShape(3, 8, 12)


def made(task: Task, **more: object) -> Palette:
    torch.manual_seed(0)
    method = Palette(DataInfo(SHAPE, ("a", "b")), PaletteConfig(task, net=NET, dim=32, **more))  # type: ignore[arg-type]
    torch.nn.init.normal_(method.net.head.weight, std=0.1)
    return method


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_upscale_sees_the_block_means() -> None:
    x = pictures(2)
    found = made("upscale").map_of(Condition(source=from_uint8(x)), 2, torch.device("cpu"))
    want = downscale_local_mean(x.numpy().astype(float), (1, 1, 4, 4)) / 127.5 - 1
    np.testing.assert_allclose(found.numpy()[:, :, ::4, ::4], want, atol=1e-6)
    assert torch.equal(found[:, :, 1::4, 2::4], found[:, :, ::4, ::4])
    again = made("upscale").map_of(Condition(source=found), 2, torch.device("cpu"))
    assert torch.allclose(again, found, atol=1e-6)  # a picture that is degraded already stays


def test_colorize_sees_pillows_grey() -> None:
    x = pictures(1)
    found = made("colorize").map_of(Condition(source=from_uint8(x)), 1, torch.device("cpu"))
    want = np.asarray(Image.fromarray(x[0].permute(1, 2, 0).numpy()).convert("L"))
    np.testing.assert_allclose((found[0, 0].numpy() + 1) * 127.5, want, atol=0.51)
    grey = found.expand(-1, 3, -1, -1)
    assert torch.allclose(made("colorize").map_of(Condition(source=grey), 1, torch.device("cpu")), found, atol=1e-6)


@pytest.mark.parametrize("task", ["upscale", "colorize", "inpaint"])
def test_samples_know_nothing_of_what_is_hidden(task: Task) -> None:
    """Two sources with one map give one image; another map gives another."""
    method, x = made(task), from_uint8(pictures(2))
    mask = torch.zeros(2, 1, 8, 12)
    mask[:, :, 2:6, 3:9] = 1
    cond = Condition(label=torch.tensor([0, 1]), source=x, mask=mask if task == "inpaint" else None)
    hidden = {
        "upscale": lambda v: v.view(2, 3, 2, 4, 3, 4).flip(3, 5).reshape(v.shape),  # pixels change places within their block
        "colorize": lambda v: torch.stack([v[:, 0] + 0.114, v[:, 1], v[:, 2] - 0.299], 1),
        "inpaint": lambda v: v * (1 - mask),
    }[task]
    other = replace(cond, source=hidden(x))
    request = Request((1, 2), cond, steps=3, guidance=2.0)
    out = method.sample(request)
    assert not torch.equal(x, hidden(x))
    assert torch.allclose(out, method.sample(replace(request, cond=other)), atol=1e-4)
    assert not torch.allclose(out, method.sample(replace(request, cond=replace(cond, source=-x))), atol=1e-2)
    if task == "inpaint":
        kept = (mask == 0).expand_as(x)
        assert torch.equal(out[kept], x[kept])
        assert not torch.allclose(out[~kept], x[~kept], atol=0.1)


def test_the_loss_is_that_of_the_map_and_its_label() -> None:
    """The gradient reaches the weights of the map's channels, and of the noisy image's."""
    method = made("inpaint")
    batch = Batch(from_uint8(pictures(4)), Condition(label=torch.tensor([0, 1, 0, 1])))
    torch.manual_seed(5)
    method.loss(batch, Moment(0, 1, 0))["loss"].backward()
    grad = method.net.stem.weight.grad
    assert grad.shape[1] == 3 + 4
    assert (grad.abs().sum((0, 2, 3)) > 0).all()


def test_random_masks_cover_what_they_say() -> None:
    torch.manual_seed(3)
    masks = random_masks(2000, 24, 16)
    assert masks.shape == (2000, 1, 24, 16)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    share = masks.mean((1, 2, 3))
    rows, columns = masks.amax(3).sum(2)[:, 0], masks.amax(2).sum(2)[:, 0]  # sides of the bounding box, where it is one
    boxes = (rows * columns / 384 - share).abs() < 1e-6
    assert 0.45 < boxes.float().mean() < 0.62
    assert rows[boxes].min() >= 1
    assert rows[boxes].max() <= 19  # three quarters of 24, and a pixel more
    assert share[boxes].mean().item() == pytest.approx(0.25, abs=0.03)  # (1/2)^2, the mean of a product of uniforms
    assert 0.1 < share[~boxes].mean() < 0.5
    middle = masks.mean(0)[0]
    assert middle.min() > 0.01  # every pixel is hidden now and then
    assert middle[8:16, 4:12].mean() > middle[:2].mean()


def test_refusals() -> None:
    source = from_uint8(pictures(1))
    for task, cond, words in (("upscale", Condition(), "--source"), ("inpaint", Condition(source=source), "--mask"),
                              ("colorize", Condition(source=source[:, :1]), "source is"), ("upscale", Condition(source=source, mask=source[:, :1]), "mask")):
        with pytest.raises(UserError, match=words):
            made(task).sample(Request((0,), cond))
    with pytest.raises(UserError, match="factor 5"):
        made("upscale", factor=5)
    with pytest.raises(UserError, match="colorize needs color"):
        Palette(DataInfo(ImageShape(1, 8, 8)), PaletteConfig("colorize", net=NET))
    assert Ability.MASK in made("inpaint").abilities
    assert Ability.MASK not in made("upscale").abilities


@pytest.mark.parametrize(("recipe", "task"), [(upscale, "upscale"), (colorize, "colorize"), (inpaint, "inpaint")])
def test_recipes(recipe, task: Task) -> None:
    for size in ("tiny", "small", "base"):
        found = recipe(size)
        assert found.last.model.task == task
        assert "2111.05826" in found.paper
    assert recipe("tiny").last.data.channels == (3 if task == "colorize" else None)
