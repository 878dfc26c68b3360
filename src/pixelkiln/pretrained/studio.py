"""A pipeline that paints orders: one generator an image, settings that fit the memory, and facts of all that was done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, final

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.images import read_image
from ..core.version import __version__
from . import memory
from .embed import embedded, needs_embedding, slerp
from .gather import Gathered
from .guards import Guards
from .load import family, open_pipeline
from .order import Order
from .pictures import Canvas, as_pil, canvas, composite, picture, resized
from .solver import make_solver
from .watch import Watch

__all__ = ["Painted", "Studio", "versions"]

STEPS = 25  # of a solver that was chosen here and not by the pipeline
BINS = {"pixart": (32, 64, 128, 256), "sana": (16, 32, 64, 128)}  # sizes of latents for which diffusers knows bins of resolutions


@dataclass(frozen=True)
class Painted:
    """An image uint8 (3, H, W), the order with everything that was left open filled in, and what happened."""

    image: Tensor
    order: Order
    facts: Mapping[str, Any]


def versions() -> dict[str, str]:
    """The versions that an image depends on."""
    found = {"pixelkiln": __version__, "torch": torch.__version__}
    for name in ("diffusers", "transformers", "accelerate", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@final
class Studio:
    """An opened pipeline on its device. say: told what is decided and what goes wrong on the way."""

    def __init__(self, found: Gathered, say: Callable[[str], None] = lambda line: None, batch: int = 1, pixels: int = 512 * 512) -> None:
        self.say, self.pipe = say, open_pipeline(found)
        self.family = family(self.pipe)
        self.known = inspect.signature(type(self.pipe).__call__).parameters
        self.own = self.pipe.scheduler
        self.guards = Guards(self.pipe, found.setup.safety, found.setup.watermark)
        level = found.setup.memory
        device = found.setup.device
        if level == "auto":
            level = memory.choose_level(self.pipe, device, batch * pixels, memory.free_memory(device))
            if level != "none":
                say(f"memory: {memory.LEVELS[level]}, since little is free")
        memory.apply(self.pipe, level, device)
        self.found = replace(found, setup=replace(found.setup, memory=level))
        self.multiple = self._multiple()
        self._read()

    @property
    def net(self) -> Any:
        """The network that denoises."""
        return getattr(self.pipe, "unet", None) or self.pipe.transformer

    def alone(self, order: Order) -> bool:
        """Whether the order cannot share a batch. Stable Diffusion 3 draws latents of control maps from the process's generator, for a batch at once."""
        return needs_embedding(self.pipe, order) or (self.family == "sd3" and bool(self.found.setup.controls))

    def _multiple(self) -> int:
        """Sides of images are multiples of it."""
        scale = int(getattr(self.pipe, "vae_scale_factor", 8))
        return {"flux": scale * 2, "sd3": scale * 2, "sana": 32, "other": scale}.get(self.family, max(8, scale))

    def _side(self) -> int:
        """Width and height of images where nobody asks for others."""
        side = self.net.config.get("sample_size") or getattr(self.pipe, "default_sample_size", 128)
        return int(side if isinstance(side, int) else side[0]) * int(self.pipe.vae_scale_factor)

    def _read(self) -> None:
        """The user's images, once. Errors: `UserError` for one that this pipeline does not take."""
        setup = self.found.setup
        masked = setup.task == "inpaint"
        for given, name, options in ((setup.source, "image", "--source"), (masked, "mask_image", "--mask or --outpaint"),
                                     (setup.guides, "ip_adapter_image", "--ip-adapter")):
            if given and name not in self.known:
                raise UserError(f"{type(self.pipe).__name__} takes no {options}: leave it out")
        if self.family == "flux" and setup.source and len(setup.controls) > 1:  # diffusers 0.42 fails inside
            raise UserError("FLUX takes one --control with a --source: leave the others out")
        self.source = picture(setup.source) if setup.source else None
        self.canvas: Canvas | None = None
        if setup.task == "inpaint":
            assert self.source is not None
            mask = read_image(setup.mask)[:1] if setup.mask else None
            cell = int(getattr(self.pipe, "vae_scale_factor", 8))
            self.canvas = canvas(self.source, mask, setup.outpaint, setup.feather, self.multiple, cell)
        self.maps = [picture(c.image) for c in setup.controls]
        self.guides = [as_pil(picture(g.image)) for g in setup.guides]

    def completed(self, order: Order) -> Order:
        """The order with the solver, steps and guidance that it gets. Errors: `UserError` for what this pipeline cannot use."""
        name, _ = make_solver(self.own, order.solver, order.spacing, hasattr(self.pipe, "unet"))
        default: Callable[[str], Any] = lambda option: self.known[option].default if option in self.known else None
        steps = order.steps or (STEPS if name != "own" and order.solver == "auto" else int(default("num_inference_steps")))
        given = {"guidance": "guidance_scale", "true_guidance": "true_cfg_scale", "image_guidance": "image_guidance_scale", "strength": "strength",
                 "negative": "negative_prompt"}
        values: dict[str, Any] = {}
        for field, option in given.items():
            value = getattr(order, field)
            if value not in (None, "") and option not in self.known:
                raise UserError(f"{type(self.pipe).__name__} does not know --{field.replace('_', '-')}: leave it out")
            if field != "negative" and value is None and option in self.known:
                values[field] = float(default(option))
        order = replace(order, solver=name, steps=steps, **values)
        if order.negative and self.family == "flux" and (order.true_guidance or 1) <= 1:
            raise UserError("a negative prompt acts on this model only with --true-guidance above 1: add it")
        if order.strength is not None and int(steps * order.strength) < 1:
            raise UserError(f"{steps} steps at strength {order.strength:g} are less than one step: take more steps or more strength")
        for name, side in (("width", order.width), ("height", order.height)):
            if side is not None and side % self.multiple:
                raise UserError(f"--size: the {name} {side} is not a multiple of {self.multiple}, which this model needs: take "
                                f"{max(1, round(side / self.multiple)) * self.multiple}")
        return order

    def paint(self, orders: Sequence[Order], watch: Watch | None = None) -> list[Painted]:
        """The images of orders with the same settings, together. Where the memory is full: once more, with the next cheaper setting."""
        orders = [self.completed(order) for order in orders]
        watch = watch or Watch()
        before = watch.evaluations
        try:
            images = self._run(orders, watch)
        except (RuntimeError, MemoryError) as error:
            level = memory.next_level(self.found.setup.memory, self.found.setup.device)
            if not (memory.is_full(error) or isinstance(error, MemoryError)):
                raise
            images = None
        if images is None:
            images = self._again(orders, watch, level)
        setup = self.found.setup
        done = watch.evaluations - before
        facts = {"pipeline": type(self.pipe).__name__, "scheduler": type(self.pipe.scheduler).__name__, "evaluations": done, "versions": versions(),
                 "device": self._device(), "memory": setup.memory}
        return [Painted(image, replace(order, width=image.shape[2], height=image.shape[1]) if setup.task == "text" else order,
                        {**facts, **self.guards.facts(i, image.shape[2], image.shape[1])})
                for i, (image, order) in enumerate(zip(images, orders, strict=True))]

    def _again(self, orders: Sequence[Order], watch: Watch, level: str | None) -> list[Tensor]:
        """After the memory was full."""
        setup = self.found.setup
        if level is None:
            raise UserError(f"the memory of {setup.device} is full, with {memory.LEVELS[setup.memory]}: take a smaller --size, or --batch 1")
        self.say(f"the memory of {setup.device} is full: once more with {memory.LEVELS[level]}")
        if setup.device.startswith("cuda"):
            torch.cuda.empty_cache()
        memory.apply(self.pipe, level, setup.device)
        self.found = replace(self.found, setup=replace(setup, memory=level))
        try:
            return self._run(orders, watch)
        except (RuntimeError, MemoryError) as error:
            if memory.is_full(error) or isinstance(error, MemoryError):
                raise UserError(f"the memory of {setup.device} is full even with {memory.LEVELS[level]}: take a smaller --size, or --batch 1, "
                                "or a cheaper --memory") from None
            raise

    def _device(self) -> str:
        device = torch.device(self.found.setup.device)
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def _run(self, orders: Sequence[Order], watch: Watch) -> list[Tensor]:
        """One call of the pipeline."""
        first = orders[0]
        _, self.pipe.scheduler = make_solver(self.own, first.solver, first.spacing, hasattr(self.pipe, "unet"))
        values = self._arguments(orders) | watch.callbacks(self.pipe, self.known)
        self.guards.flags.clear()
        walk = first.walk
        blend = self._blended(first.seed, walk.to_seed, walk.t) if walk is not None and walk.to_seed is not None else nullcontext()
        device = torch.device(self.found.setup.device)
        with watch.over(self.net), blend, torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(first.seed)  # for what a pipeline draws beside its generators
            try:
                out = self.pipe(**values).images
            except (ValueError, TypeError) as error:  # what the pipeline itself has against the arguments
                raise UserError(f"{type(self.pipe).__name__}: {' '.join(str(error).split())[:240]}: change the options") from error
        if bool(torch.isnan(out).any()):
            raise UserError(f"the images hold NaN in {self.found.setup.precision}: say --precision fp32" if self.found.setup.precision != "fp32" else
                            "the images hold NaN: the model is damaged, or the settings are far out; change them")
        images = list((out.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8))
        return [composite(image, self.canvas) for image in images] if self.canvas is not None else images

    def _arguments(self, orders: Sequence[Order]) -> dict[str, Any]:
        """The pipeline's arguments, among those that it knows."""
        first, n = orders[0], len(orders)
        known = self.known
        values: dict[str, Any] = {
            "num_inference_steps": first.steps, "guidance_scale": first.guidance, "true_cfg_scale": first.true_guidance,
            "image_guidance_scale": first.image_guidance, "strength": first.strength, "width": first.width, "height": first.height,
            "generator": [torch.Generator().manual_seed(order.seed) for order in orders], "output_type": "pt", "clean_caption": False,
        }
        if self.family in BINS and self.net.config.sample_size not in BINS[self.family]:
            values["use_resolution_binning"] = False
        if needs_embedding(self.pipe, first):
            assert n == 1, "an order with weights, chunks or a walk is painted alone"
            guided = (first.guidance or 0) > 1
            values |= embedded(self.pipe, first, guided)
            if self.family == "flux" and (first.true_guidance or 1) > 1:
                minus = embedded(self.pipe, replace(first, prompt=first.negative, negative="", walk=None), False)
                values |= {"negative_prompt_embeds": minus["prompt_embeds"], "negative_pooled_prompt_embeds": minus["pooled_prompt_embeds"]}
            if self.family in BINS:
                values["negative_prompt"] = None
        else:
            values["prompt"] = [order.prompt for order in orders]
            if first.negative:
                values["negative_prompt"] = [first.negative] * n
        values |= self._pictures(first, n)
        size = (values["height"] or 0, values["width"] or 0)
        self.pipe._preview_size = size if all(size) else (self._side(),) * 2
        return {name: value for name, value in values.items() if name in known and (value is not None or name == "negative_prompt")}

    def _pictures(self, order: Order, n: int) -> dict[str, Any]:
        """Source, mask, control maps and images that prompt, in the pipeline's words."""
        setup, values = self.found.setup, dict[str, Any]()
        width, height = order.width, order.height
        if self.canvas is not None:
            height, width = self.canvas.image.shape[1:]
            values |= {"image": [as_pil(self.canvas.image)] * n, "mask_image": [as_pil(self.canvas.mask)] * n}
        elif self.source is not None:
            source = resized(self.source, width, height, self.multiple)
            height, width = source.shape[1:]
            values["image"] = [as_pil(source)] * n
        if self.maps:
            name = "control_image" if "control_image" in self.known else "image"
            width, height = width or self._side(), height or self._side()
            maps = [as_pil(resized(m, width, height, self.multiple)) for m in self.maps]
            weights, starts, ends = ([getattr(c, f) for c in setup.controls] for f in ("weight", "start", "end"))
            one = len(maps) == 1
            values |= {name: [maps[0]] * n if one else [[m] * n for m in maps] if n > 1 else maps,
                       "controlnet_conditioning_scale": weights[0] if one else weights,
                       "control_guidance_start": starts[0] if one else starts, "control_guidance_end": ends[0] if one else ends}
        if self.guides:
            values["ip_adapter_image"] = self.guides
        if self.source is not None or self.maps:
            values |= {"width": width, "height": height}
        return values

    @contextmanager
    def _blended(self, seed: int, other: int, t: float) -> Any:
        """Inside, the pipeline begins with noise on the sphere between that of two seeds."""
        make = self.pipe.prepare_latents
        names = list(inspect.signature(make).parameters)

        def between(*args: Any, **kwargs: Any) -> Any:
            bound = dict(zip(names, args)) | kwargs
            first, second = make(**bound), make(**bound | {"generator": [torch.Generator().manual_seed(other)]})
            x, y = (f[0] if isinstance(f, tuple) else f for f in (first, second))
            z = slerp(x.flatten(1), y.flatten(1), t).view_as(x)
            return (z, *first[1:]) if isinstance(first, tuple) else z

        self.pipe.prepare_latents = between
        try:
            yield
        finally:
            del self.pipe.prepare_latents
