"""Peer: pythae (0.1.2), its VAE, BetaVAE, WAE_MMD, IWAE and VQVAE, trained by its own BaseTrainer on the networks of pixelkiln's recipes (pythae_nets.py).

    python benchmarks/peers/pythae_vae.py --data ../shared/data/mnist --model vae --size '{"net": "conv", "width": 16, ...}' --epochs 2 --out vae.npz

Written for benchmarks/pythae.py, which says --size and the objective's numbers. As its user would have it at its best:
- images are one float tensor in memory, in pythae's BaseDataset; the Bernoulli models binarize an item anew each time that it is asked for, as the
  Dataset of its own reproductions of the IWAE does (examples/scripts/reproducibility), and train with its "bce"; the other two train on [-1, 1];
- Adam at the recipe's rate, constant; fused or not, channels-last or not, whichever is the fastest in a short trial before the clock starts;
- no evaluation, no checkpoints, no predictions on the way; data come without workers, as there is one core. Its mixed precision is CUDA's only
  (trainers/base_trainer/base_trainer.py, line 98), so that there is none here;
- its progress bar and its copy of the best model after every epoch stay: its trainer has no switch for them.

--out holds the weights of the model that pythae keeps (the best on the training loss), and images with what pythae makes of them.
Needs: pip install --no-deps pythae; pip install torch cloudpickle imageio numpy pydantic scikit-learn scipy tqdm Pillow (CIFAR-10: pyarrow)
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import pythae_nets as nets
import torch
from common import Clock, Slices, load, parser
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import IWAE, VAE, VQVAE, WAE_MMD, BetaVAE, BetaVAEConfig, IWAEConfig, VAEConfig, VQVAEConfig, WAE_MMD_Config
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback

__all__: list[str] = []

BERNOULLI = ("vae", "beta-vae", "iwae")
CHECKED = 16  # images whose reconstruction goes out with the weights
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


class Binarized(BaseDataset):
    """Every item is binarized anew."""

    def __getitem__(self, index):
        return DatasetOutput(data=torch.bernoulli(self.data[index]), labels=self.labels[index])


class Over(Exception):
    """There is nothing more to do."""


class Ticks(TrainingCallback):
    """The clock, called by pythae after every step."""

    def __init__(self, clock, images, batch):
        self.clock, self.images, self.batch, self.position = clock, images, batch, 0

    def on_train_step_end(self, training_config, **kwargs):
        count = min(self.batch, self.images - self.position)  # the last batch of an epoch is short
        self.position = (self.position + count) % self.images
        if self.clock.tick(count):
            raise Over


def model_of(args, shape, colors_variance):
    """pythae's model on the recipe's networks; what is trained by cross-entropy ends with a sigmoid."""
    size, common = json.loads(args.latent_and_size), {"input_dim": shape}
    if args.model == "vqvae":
        config = VQVAEConfig(**common, num_embeddings=size["codes"], use_ema=True, decay=size["decay"],
                             commitment_loss_factor=args.commitment * colors_variance * math.prod(shape))
        return VQVAE(config, encoder=nets.Down(config, size), decoder=nets.Up(config, size))
    common["latent_dim"] = size["latent"]
    config = {
        "vae": lambda: VAEConfig(**common, reconstruction_loss="bce"),
        "beta-vae": lambda: BetaVAEConfig(**common, reconstruction_loss="bce", beta=args.beta),
        "iwae": lambda: IWAEConfig(**common, reconstruction_loss="bce", number_samples=args.samples),
        "wae": lambda: WAE_MMD_Config(**common, reg_weight=args.penalty),
    }[args.model]()
    out = size["latent"] * (1 if args.model == "wae" else 2)
    mlp = size["net"] == "mlp"
    encoder, decoder = (nets.MLPEncoder if mlp else nets.ConvEncoder)(config, out, size), (nets.MLPDecoder if mlp else nets.ConvDecoder)(config, size)
    encoder.signed, decoder.sigmoid = args.model == "wae", args.model != "wae"
    return {"vae": VAE, "beta-vae": BetaVAE, "iwae": IWAE, "wae": WAE_MMD}[args.model](config, encoder=encoder, decoder=decoder)


def fastest(model, x, lr, laps=6):
    """Layout and fused Adam or not: the way in which a step is the fastest, the best of some in processor time, by trial on copies that take turns."""
    ways = {}
    for layout, form in LAYOUTS.items():
        for fused in (False, True):
            net = copy.deepcopy(model).to(memory_format=form).train()
            ways[layout, fused] = net, torch.optim.Adam(net.parameters(), lr, fused=fused)
    best = dict.fromkeys(ways, math.inf)
    for lap in range(laps):
        for way, (net, opt) in ways.items():
            begin = time.process_time()
            loss = net(DatasetOutput(data=x), epoch=1).loss
            opt.zero_grad()
            loss.backward()
            opt.step()
            if lap:
                best[way] = min(best[way], time.process_time() - begin)
    return min(best, key=best.__getitem__)


@torch.no_grad()
def save(model, x, out: Path) -> None:
    """Parameters by pixelkiln's names, the codes of a VQ-VAE, and images with what the model makes of them (posterior means, in [0, 1])."""
    model = model.eval()
    arrays = {name: value.numpy() for part in ("encoder", "decoder") for name, value in
              ((f"{part}.{n}", v) for n, v in getattr(model, part).state_dict().items())}
    z = model.encoder(x).embedding
    if hasattr(model, "quantizer"):
        arrays["codes"] = model.quantizer.embeddings.numpy()
        z = model.quantizer(z.permute(0, 2, 3, 1)).quantized_vector
    y = model.decoder(z).reconstruction
    if not getattr(model.decoder, "sigmoid", False):  # trained on [-1, 1]
        x, y = (x + 1) / 2, (y.clamp(-1, 1) + 1) / 2
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **arrays, **{"check.x": x.numpy(), "check.y": y.numpy()})


def main():
    """Train for so many epochs, or until there are no more orders."""
    p = parser(__doc__)
    p.add_argument("--model", choices=[*BERNOULLI, "wae", "vqvae"], required=True)
    p.add_argument("--size", dest="latent_and_size", required=True, help="of the networks, JSON")
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--images", type=int, help="the first so many images only")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--beta", type=float, default=4.0)
    p.add_argument("--penalty", type=float, default=100.0, help="of the MMD beside the squared error on [-1, 1]")
    p.add_argument("--samples", type=int, default=5)
    p.add_argument("--commitment", type=float, default=0.25, help="in units of pixelkiln's loss, the squared error over its variance, a mean")
    args = p.parse_args()
    torch.manual_seed(args.seed)
    images, labels = load(args.data)
    images, labels = images[: args.images], labels[: args.images]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().div_(255)
    if args.model not in BERNOULLI:
        x = x.mul_(2).sub_(1)
    model = model_of(args, tuple(x.shape[1:]), float(x.var()))
    layout, fused = fastest(model, x[: args.batch], args.lr)
    model = model.to(memory_format=LAYOUTS[layout])
    data = (Binarized if args.model in BERNOULLI else BaseDataset)(x, torch.from_numpy(labels))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(output_dir=folder, per_device_train_batch_size=args.batch, learning_rate=args.lr, no_cuda=args.device == "cpu", seed=args.seed,
                                   num_epochs=10**6 if args.slices else args.epochs, optimizer_cls="Adam", optimizer_params={"fused": fused}, keep_best_on_train=True)
        trainer = BaseTrainer(model, train_dataset=data, training_config=config)
        facts = {"parameters": sum(p.numel() for net in (model.encoder, model.decoder) for p in net.parameters()), "threads": torch.get_num_threads()}
        facts |= {"where": f"cpu, fp32, {layout}, {'fused' if fused else 'plain'} Adam"}
        clock = Slices(args.device, **facts) if args.slices else Clock(math.inf)
        trainer.callbacks = [Ticks(clock, len(x), args.batch)]
        begin = time.process_time()
        try:
            trainer.train()
        except Over:
            return
    facts |= {"steps": clock.steps, "images": clock.images, "seconds": round(clock.seconds, 2), "processor_seconds": round(time.process_time() - begin, 2)}
    save(trainer._best_model, x[:CHECKED], args.out)
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
