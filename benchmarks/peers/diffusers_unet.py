"""Peer: diffusers' UNet2DModel, class-conditional, with the loop of its examples/unconditional_image_generation, on MNIST.

As the example has it: epsilon prediction, MSE, DDPMScheduler with 1000 linear steps, AdamW (betas 0.95, 0.999, weight decay 1e-6),
cosine rate with warm-up from diffusers' get_scheduler, gradient norm at most 1, EMAModel (power 3/4, at most 0.9999), images
normalised to [-1, 1], a DataLoader that converts one image at a time.

Chosen for a ten-minute budget on two cores, each an option where it has a name:
- num_class_embeds=10: the example is unconditional, the comparison is by class (its pipeline takes no classes, so the
  sampling loop is the pipeline's, written out with class_labels);
- 28 x 28 and three levels of 32, 64, 64 channels (--channels) instead of the example's six of 128 to 512 for 64 pixels; two residual
  blocks each, attention at the lowest resolution. Forward and backward, one core, fp32: 56 images/s; 19 with 64, 128, 128; a
  third less with attention at 14 x 14 too;
- rate 4e-4, 100 steps of warm-up, batches of 64 (example: 1e-4, 500, 16), which suits a run of some thousand steps;
- the number of steps of the cosine is planned from the measured rate, so that it ends with the budget;
- --mixed-precision auto: fp32 or bf16 as accelerate's flag would have it, and channels_last or not, whichever of the four is the
  fastest in a short trial before the clock starts;
- no accelerate launcher, no flips (digits), no checkpoints, and --seed.

Samples, the classes in turn, with the averaged weights: one file for each --sampler name:steps. `ddpm:1000` is what the example's
DDPMPipeline does; `ddim:50` and `dpm:50` (DPMSolverMultistepScheduler) cost a twentieth. With several, files get the sampler's name.

Needs: pip install torch diffusers accelerate transformers
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import nullcontext
from copy import deepcopy

import torch
import torch.nn.functional as F
from common import Clock, Items, clock_of, finish, labels_for, load, parser, to_tensor
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

__all__: list[str] = []

SAMPLERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler}
REPLAN = 50  # steps between two looks at the rate


def network(args, side: int = 28, colors: int = 1) -> UNet2DModel:
    """The example's kind of U-Net at this size; attention at one level, the lowest by default."""
    channels, layers, groups = args.channels, args.layers, args.groups
    here = range(len(channels))[args.attention]
    kinds = ["Attn" if i == here else "" for i in range(len(channels))]
    return UNet2DModel(
        sample_size=side,
        in_channels=colors,
        out_channels=colors,
        layers_per_block=layers,
        norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift" if args.scale_shift else "default",
        block_out_channels=tuple(channels),
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        num_class_embeds=10,
    )


def precision(mixed: str, device: torch.device):
    """What accelerate's --mixed_precision does."""
    return torch.autocast(device.type, torch.bfloat16) if mixed == "bf16" else nullcontext()


def fastest(model: UNet2DModel, mixed: str, layout: str, batch: int) -> tuple[str, torch.memory_format]:
    """Precision and memory format of the fastest of three training passes, by trial on a copy."""
    times: dict[tuple[str, torch.memory_format], float] = {}
    for memory in (torch.contiguous_format, torch.channels_last) if layout == "auto" else (torch.contiguous_format,):
        copy = deepcopy(model).to(memory_format=memory)
        x = torch.randn(batch, model.config.in_channels, *[model.config.sample_size] * 2, device=model.device).to(memory_format=memory)
        for kind in ("no", "bf16") if mixed == "auto" else (mixed,):
            for _ in range(3):
                start = time.perf_counter()
                with precision(kind, model.device):
                    copy(x, 500, class_labels=labels_for(batch).to(x.device)).sample.float().square().mean().backward()
                if x.is_cuda:
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - start
                times[kind, memory] = min(seconds, times.get((kind, memory), seconds))
    for (kind, memory), seconds in times.items():
        print(f"trial: mixed precision {kind}, {memory}: {batch / seconds:.1f} images/s", file=sys.stderr, flush=True)
    return min(times, key=times.__getitem__)


def train(model, loader, args) -> tuple[Clock, EMAModel]:
    """The example's loop, until the time is up."""
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    clock, plan = clock_of(args, model), 10**6
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=args.warmup, num_training_steps=plan)
    while True:
        for images, labels in loader:
            images, labels = images.to(args.device, memory_format=args.memory), labels.to(args.device)
            noise = torch.randn_like(images)
            timesteps = torch.randint(0, 1000, (len(images),), device=images.device).long()
            noisy = noise_scheduler.add_noise(images, noise, timesteps)
            with precision(args.mixed_precision, model.device):
                output = model(noisy, timesteps, class_labels=labels).sample
            loss = F.mse_loss(output.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            ema.step(model.parameters())
            if clock.tick(len(images)):
                return clock, ema
            if clock.steps % REPLAN == 0 and not args.slices:
                plan = math.ceil(clock.steps * clock.limit / clock.seconds)
                end = {"num_warmup_steps": args.warmup, "num_training_steps": plan}
                lr_scheduler = get_scheduler("cosine", optimizer, last_epoch=clock.steps - 1, **end)
                rate = lr_scheduler.get_last_lr()[0]
                print(f"step {clock.steps}/{plan} loss {loss.item():.4f} lr {rate:.2e}", flush=True)


@torch.no_grad()
def draw(model, kind: str, steps: int, labels, args):
    """The pipeline's loop with classes: -> (n, 1, 28, 28) in [-1, 1]."""
    scheduler = SAMPLERS[kind](num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    batches = []
    for y in labels.split(args.sample_batch):
        scheduler.set_timesteps(steps)
        x = torch.randn(len(y), model.config.in_channels, *[model.config.sample_size] * 2, device=model.device).to(memory_format=args.memory)
        for t in scheduler.timesteps:
            with precision(args.mixed_precision, model.device):
                output = model(x, t, class_labels=y.to(x.device)).sample
            x = scheduler.step(output.float(), t, x).prev_sample
        batches.append(x.cpu())
    return torch.cat(batches)


def main() -> None:
    """Train, sample by each sampler, save."""
    p = parser(__doc__)
    p.add_argument("--channels", type=int, nargs="+", default=[32, 64, 64], help="channels of each level")
    p.add_argument("--layers", type=int, default=2, help="residual blocks a level")
    p.add_argument("--groups", type=int, default=32, help="of the norms; must divide the channels")
    p.add_argument("--scale-shift", action="store_true", help="the time scales and shifts, instead of being added")
    p.add_argument("--attention", type=int, default=-1, help="the level that has it; counted from the highest resolution, -1 the lowest")
    p.add_argument("--compile", action="store_true", help="torch.compile")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=4e-4)
    p.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    p.add_argument("--mixed-precision", choices=["auto", "no", "bf16"], default="auto")
    p.add_argument("--layout", choices=["auto", "contiguous"], default="auto", help="auto: channels_last or not, by the trial")
    p.add_argument("--sampler", nargs="+", default=["dpm:50"], help="name:steps with name ddpm, ddim or dpm; one file each")
    p.add_argument("--sample-batch", type=int, default=250)
    p.set_defaults(workers=0)  # as the example has it
    args = p.parse_args()
    samplers = [(s.partition(":")[0], int(s.partition(":")[2] or 50)) for s in args.sampler]
    if any(kind not in SAMPLERS for kind, _ in samplers):
        p.error(f"--sampler takes name:steps with a name of {', '.join(SAMPLERS)}")
    torch.manual_seed(args.seed)
    images, labels = load(args.data)
    data = Items(images, labels, lambda image: (to_tensor(image) - 0.5) / 0.5)
    loader = DataLoader(data, batch_size=args.batch, shuffle=True, drop_last=True, num_workers=args.workers, pin_memory=args.device.startswith("cuda"))
    model = network(args, images.shape[1], images.shape[3]).to(args.device)
    args.mixed_precision, args.memory = fastest(model, args.mixed_precision, args.layout, args.batch)
    model = model.to(memory_format=args.memory)
    if args.compile:
        model.compile()
    clock, ema = train(model.train(), loader, args)
    if args.slices:
        return
    ema.copy_to(model.parameters())
    model.eval()
    labels = labels_for(args.n)
    for kind, steps in samplers:
        out = args.out if len(samplers) == 1 else args.out.with_stem(f"{args.out.stem}-{kind}-{steps}")
        start = time.perf_counter()
        samples = draw(model, kind, steps, labels, args)
        finish(f"diffusers_unet2d_{kind}_{steps}", clock, out, (samples + 1) / 2, labels, time.perf_counter() - start)


if __name__ == "__main__":
    main()
