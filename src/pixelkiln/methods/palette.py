"""Pictures from pictures: super-resolution, colorization and inpainting by diffusion that sees a map (Saharia et al. 2022, arXiv 2111.05826).

    L = E_{t, x0, eps} [ || F([xt, map(x0)], t) - target ||^2 ],   xt = alpha_t x0 + sigma_t eps         eq. 2, Palette

The network sees the noisy image and, as channels beside it, what is left of the clean one:

    upscale    the means of blocks of factor x factor pixels, repeated                  (SR3, Saharia et al. 2021, arXiv 2104.07636)
    colorize   0.299 R + 0.587 G + 0.114 B
    inpaint    the image with zeros where the mask is 1, and the mask; in training: random rectangles and strokes

The map is made from the source in one place, for training as for sampling, so that a source can be a whole picture (which is then degraded
as in training, and can be compared with the result) or one that is degraded already: block means of block means, and grey of grey, are the same.
Where a mask is 0 the source is pasted into the result, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.protocols import Method, Update
from ..core.recipe import DataConfig, Expect, Recipe, Size, Stage, by_size
from ..core.types import Ability, Batch, Condition, DataInfo, Moment, Request, UserError
from ..nets.backbone import NetConfig, conditional
from ..nets.unet import UNetConfig, unet_of
from ..objectives.denoising import denoising_loss, halves
from ..processes import Kind, cosine_path, times
from ..solvers.diffusion import KNOBS, Diffusion, Sampling, training
from ..solvers.pictures import mask_of, source_of

__all__ = ["Palette", "PaletteConfig", "colorize", "inpaint", "random_masks", "upscale"]

Task = Literal["upscale", "colorize", "inpaint"]
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class PaletteConfig:
    """What is left of the source, and with which network it is made whole."""

    task: Task = "upscale"
    factor: int = 4  # of upscale: a side of the blocks, in pixels
    net: NetConfig = field(default_factory=UNetConfig)
    dim: int = 256  # of the vector that carries time and class
    predict: Kind = "v"
    drop: float = 0.1  # share of samples that lose their condition; the map is never lost
    captions: int = 0  # words of a caption that are read, in place of the label; 0: captions are not used
    sampling: Sampling = field(default_factory=Sampling)


@final
class Palette(Diffusion):
    """Diffusion in pixels that sees a degraded picture; class-conditional where the data have classes."""

    averaged = ("net", "condition")
    abilities = KNOBS | {Ability.LABEL, Ability.TEXT, Ability.SOURCE, Ability.MASK}

    def __init__(self, info: DataInfo, config: PaletteConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        c, h, w = info.shape
        self.config, self.kind, self.sampling, self.path = config, config.predict, config.sampling, cosine_path()
        self.fits(config.net.multiple, config.captions)
        if config.task == "upscale" and (config.factor < 2 or h % config.factor or w % config.factor):
            raise UserError(f"upscale: sides of {h}x{w} are not multiples of --model.factor {config.factor}: give a divisor of them above 1")
        if config.task == "colorize" and c != 3:
            raise UserError("colorize needs color: give --data.channels 3")
        if config.task != "inpaint":
            self.abilities = self.abilities - {Ability.MASK}
        self.condition, self.net = conditional(info, config, map_channels={"upscale": c, "colorize": 1, "inpaint": c + 1}[config.task])

    def updates(self) -> Sequence[Update]:
        """Eq. 2, the only row."""
        return (Update("denoise", ("net", "condition"), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """L over stratified times, each image its own source."""
        x0, path = batch.x, self.path
        mask = random_masks(len(x0), self.shape.height, self.shape.width, x0.device) if self.config.task == "inpaint" else None
        cond = replace(batch.cond, source=x0, mask=mask)
        t = times(len(x0), path.t_max, path.t_min, x0.device)
        each = denoising_loss(lambda xt, t: self.network(xt, t, cond), x0, torch.randn_like(x0), t, path, self.config.predict)  # (B,)
        return {"loss": each.mean(), **halves(each, t < 0.5 * path.t_max)}

    def map_of(self, cond: Condition, n: int, device: torch.device) -> Tensor:
        """What the network sees of the source, (n, K, H, W): K = C for upscale, 1 for colorize, C + 1 for inpaint."""
        shape, task = tuple(self.shape), self.config.task
        source = source_of(cond, n, shape, device)
        if task == "upscale":
            small = F.avg_pool2d(source, self.config.factor)
            return small.repeat_interleave(self.config.factor, 2).repeat_interleave(self.config.factor, 3)
        if task == "colorize":
            return (source * source.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
        hidden = mask_of(cond, n, shape, device)
        return torch.cat([source.masked_fill(hidden, 0.0), hidden.to(source.dtype)], 1)

    def network(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """F([xt, map], t, label)."""
        n = len(x)
        out: Tensor = self.net(x, t.float(), self.condition(cond, n, self.map_of(cond, n, x.device)))
        return out

    def draw(self, request: Request) -> Tensor:
        """Whole pictures (n, C, H, W); where there is a mask, the source outside it is kept as it is."""
        made, shape, n = super().draw(request), tuple(self.shape), len(request.seeds)
        if self.config.task != "inpaint":
            return made
        hidden = mask_of(request.cond, n, shape, self.device)
        return torch.where(hidden, made, source_of(request.cond, n, shape, self.device))


def random_masks(n: int, h: int, w: int, device: torch.device | str = "cpu") -> Tensor:
    """Masks (n, 1, H, W) of zeros and ones, half of them rectangles and half free-form strokes, from torch's global generator.

    Rectangles: sides uniform between a quarter and three quarters of the image's. Strokes: three straight ones between random points,
    a tenth to a quarter of the shorter side thick.
    """
    rows, columns = torch.arange(h, device=device).view(1, h, 1) + 0.5, torch.arange(w, device=device).view(1, 1, w) + 0.5

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, device=device)

    tall, wide = draw(0.25, 0.75) * h, draw(0.25, 0.75) * w
    top, left = draw(0, 1) * (h - tall), draw(0, 1) * (w - wide)
    boxes = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)  # (n, H, W)
    strokes = torch.zeros_like(boxes)
    for _ in range(3):
        y0, x0, y1, x1 = draw(0, h), draw(0, w), draw(0, h), draw(0, w)
        dy, dx, radius = y1 - y0, x1 - x0, draw(0.05, 0.125) * min(h, w)
        along = (((rows - y0) * dy + (columns - x0) * dx) / (dy**2 + dx**2).clamp_min(1e-6)).clamp(0, 1)  # of the nearest point
        strokes |= (rows - y0 - along * dy) ** 2 + (columns - x0 - along * dx) ** 2 <= radius**2
    return torch.where(draw(0, 1) < 0.5, boxes, strokes)[:, None].float()


def _measured(task: Task, data: str, steps: int, **scores: float) -> tuple[Expect, ...]:
    """Scores of the results beside the test images that they were made from."""
    command = (f"pixelkiln train {task} --data {data} --out R --steps {steps} --model.net.width 32 --train.batch 64 --threads 1; "
               "pixelkiln evaluate R -n 1000 --metrics fd,psnr,ssim")
    return tuple(Expect(name, value, data, command, "10 minutes of the time of a core of an AMD EPYC with AVX2, fp32") for name, value in scores.items())


def _recipe(task: Task, size: Size, summary: str, data: DataConfig, measured: tuple[Expect, ...]) -> Recipe:
    net = unet_of(size, UNetConfig(width=128, mults=(1, 2, 2, 2), blocks=2, attention=(1,), dropout=0.1))
    train = training(size, steps=500_000, batch=256, lr=2e-4, half_life=1_000_000)
    model = PaletteConfig(task, net=net, dim=by_size(size, tiny=32, small=256, base=512))
    return Recipe(
        stages=(Stage(Palette, model, replace(data, at_least=16, multiple=max(net.multiple, 4)), train),),
        family="diffusion",
        paper="Saharia et al., Palette: Image-to-Image Diffusion Models, 2022, arXiv 2111.05826",
        summary=summary,
        expect=by_size(size, tiny=(), small=measured, base=()),
    )


def upscale(size: Size = "small") -> Recipe:
    """Super-resolution by --model.factor: `sample --source IMAGE`."""
    return _recipe("upscale", size, "super-resolution by diffusion that sees the enlarged picture", DataConfig(), _measured("upscale", "mnist", 1185, fd=1.90, psnr=19.1, ssim=0.837))


def colorize(size: Size = "small") -> Recipe:
    """Color for grey pictures: `sample --source IMAGE`."""
    return _recipe("colorize", size, "colorization by diffusion that sees the grey picture", DataConfig(channels=3), _measured("colorize", "cifar10", 700, fd=4.01, psnr=21.4, ssim=0.883))


def inpaint(size: Size = "small") -> Recipe:
    """Redraw what a mask covers, by a model trained for it: `sample --source IMAGE --mask IMAGE`."""
    return _recipe("inpaint", size, "inpainting by diffusion that sees the mask and what it leaves", DataConfig(), _measured("inpaint", "mnist", 930, fd=13.0, psnr=13.7, ssim=0.506))
