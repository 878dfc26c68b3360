"""Peer: diffusers' UNet2DModel, class-conditional, with the loop of its examples/unconditional_image_generation, on MNIST.

As the example has it: epsilon prediction, MSE, DDPMScheduler with 1000 linear steps, AdamW (betas 0.95, 0.999, weight decay 1e-6),
cosine rate with warm-up from diffusers' get_scheduler, gradient norm at most 1, EMAModel (power 3/4, at most 0.9999), images
normalised to [-1, 1], a DataLoader that converts one image at a time, mixed precision bf16 as `--mixed_precision bf16`.

Chosen for a ten-minute budget on two cores, each an option:
- num_class_embeds=10: the example is unconditional, the comparison is by class (its pipeline takes no classes, so the
  sampling loop is the pipeline's, written out with class_labels);
- 28 x 28 and three levels of 64, 128, 128 channels instead of the example's six of 128 to 512 for 64 pixels; two residual blocks
  each, attention at 14 x 14 and 7 x 7 as its scripts put it at the low resolutions;
- rate 4e-4, 100 steps of warm-up, batches of 64 (example: 1e-4, 500, 16), which suits a run of some thousand steps;
- the number of steps of the cosine is planned from the rate that the first steps run at, so that it ends with the budget;
- no accelerate launcher, no flips (digits), no checkpoints, and --seed.

Samples, the classes in turn, with the averaged weights: one file for each --sampler name:steps. `ddpm:1000` is what the example's
DDPMPipeline does; `ddim:50` and `dpm:50` (DPMSolverMultistepScheduler) cost a twentieth. With several, files get the sampler's name.

Needs: pip install torch diffusers accelerate transformers
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from common import Clock, Items, finish, labels_for, load, parser, to_tensor
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

__all__: list[str] = []

SAMPLERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler}
PROBE = 12  # steps that measure the rate; the first two are left out


def network(channels: list[int]) -> UNet2DModel:
    """The example's kind of U-Net at this size; attention below the highest resolution."""
    low = len(channels) - 1
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * low,
        up_block_types=("AttnUpBlock2D",) * low + ("UpBlock2D",),
        num_class_embeds=10,
    )


def precision(args):
    """What accelerate's --mixed_precision does on a processor."""
    return torch.autocast("cpu", torch.bfloat16) if args.mixed_precision == "bf16" else nullcontext()


def train(model, loader, args) -> tuple[Clock, EMAModel]:
    """The example's loop, until the planned steps are done or the time is up."""
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    ema = EMAModel(
        model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75, model_cls=UNet2DModel, model_config=model.config
    )
    warmup = {"num_warmup_steps": args.warmup}
    lr_scheduler = get_scheduler("cosine", optimizer, num_training_steps=10**6, **warmup)
    clock, mark, plan = Clock(args.minutes), 0.0, 10**6
    while True:
        for images, labels in loader:
            noise = torch.randn_like(images)
            timesteps = torch.randint(0, 1000, (len(images),)).long()
            noisy = noise_scheduler.add_noise(images, noise, timesteps)
            with precision(args):
                output = model(noisy, timesteps, class_labels=labels).sample
            loss = F.mse_loss(output.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            ema.step(model.parameters())
            over = clock.tick(len(images))
            if clock.steps % 50 == 0:
                print(f"step {clock.steps}/{plan} loss {loss.item():.4f} lr {lr_scheduler.get_last_lr()[0]:.2e}", flush=True)
            if clock.steps == 2:
                mark = clock.seconds
            if clock.steps == PROBE:
                plan = PROBE + max(1, int((clock.limit - clock.seconds) * (PROBE - 2) / (clock.seconds - mark)))
                lr_scheduler = get_scheduler("cosine", optimizer, num_training_steps=plan, last_epoch=PROBE, **warmup)
            if over or clock.steps >= plan:
                return clock, ema


@torch.no_grad()
def draw(model, kind: str, steps: int, labels, args):
    """The pipeline's loop with classes: -> (n, 1, 28, 28) in [-1, 1]."""
    scheduler = SAMPLERS[kind](num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    batches = []
    for y in labels.split(args.sample_batch):
        scheduler.set_timesteps(steps)
        x = torch.randn(len(y), 1, 28, 28)
        for t in scheduler.timesteps:
            with precision(args):
                output = model(x, t, class_labels=y).sample
            x = scheduler.step(output.float(), t, x).prev_sample
        batches.append(x)
    return torch.cat(batches)


def main() -> None:
    """Train, sample by each sampler, save."""
    p = parser(__doc__)
    p.add_argument("--channels", type=int, nargs="+", default=[64, 128, 128], help="channels of each level")
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--lr", type=float, default=4e-4)
    p.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    p.add_argument("--mixed-precision", choices=["no", "bf16"], default="bf16")
    p.add_argument("--sampler", nargs="+", default=["dpm:50"], help="name:steps with name ddpm, ddim or dpm; one file each")
    p.add_argument("--sample-batch", type=int, default=250)
    args = p.parse_args()
    samplers = [(s.partition(":")[0], int(s.partition(":")[2] or 50)) for s in args.sampler]
    if any(kind not in SAMPLERS for kind, _ in samplers):
        p.error(f"--sampler takes name:steps with a name of {', '.join(SAMPLERS)}")
    torch.manual_seed(args.seed)
    data = Items(*load(args.data), lambda image: (to_tensor(image) - 0.5) / 0.5)
    loader = DataLoader(data, batch_size=args.batch, shuffle=True, drop_last=True)
    model = network(args.channels)
    clock, ema = train(model.train(), loader, args)
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
