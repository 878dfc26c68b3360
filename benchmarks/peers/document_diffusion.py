"""Peer: the conditional diffusion model that the project's source document lists ("简易条件扩散模型"), REPAIRED.

MNIST, batch 128, Adam 1e-4, fp32, 1000 linear steps, classes given as one-hot vectors.

The original crashes: it computes sinusoidal time embeddings, but hands its network the raw time steps (a (B,) integer tensor,
where a Linear(32, 32) waits). The repair is the smallest one: the network gets the embedding of the step that was meant for it.

Changed from the original besides:
- `if t == 0` compares a whole batch of equal steps, which only works for one image: it looks at the first, so that batches can be drawn;
- torchvision's MNIST and transforms are a Dataset that converts and normalises one PIL image at a time, as they do;
- training stops after --minutes of wall-clock instead of 30 epochs;
- plots, checkpoints, tqdm and the samples after every fifth epoch are left out (none of them trains);
- --seed instead of 42; at the end -n samples, the classes in turn, by the original's 1000 ancestral steps, --sample-batch at a time.
"""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from common import Items, clock_of, finish, labels_for, load, parser, to_tensor
from torch import nn, optim
from torch.utils.data import DataLoader

__all__: list[str] = []


class SimpleUNet(nn.Module):
    """The document's network."""

    def __init__(self, in_channels=1, out_channels=1, time_emb_dim=32, conditioning_dim=10):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(time_emb_dim, time_emb_dim), nn.ReLU(), nn.Linear(time_emb_dim, time_emb_dim))
        self.cond_mlp = nn.Sequential(nn.Linear(conditioning_dim, time_emb_dim), nn.ReLU(), nn.Linear(time_emb_dim, time_emb_dim))
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(64, 128, 3, padding=1, stride=2)
        self.mid_block1 = nn.Conv2d(128, 128, 3, padding=1)
        self.mid_block2 = nn.Conv2d(128, 128, 3, padding=1)
        self.time_cond_mlp1 = nn.Linear(time_emb_dim, 128)
        self.time_cond_mlp2 = nn.Linear(time_emb_dim, 128)
        self.up1 = nn.ConvTranspose2d(128, 64, 4, 2, 1)
        self.conv4 = nn.Conv2d(128, 64, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.conv5 = nn.Conv2d(64, 32, 3, padding=1)
        self.conv6 = nn.Conv2d(32, out_channels, 3, padding=1)

    def forward(self, x, t, c=None):
        emb = self.time_mlp(t)
        if c is not None:
            emb = emb + self.cond_mlp(c)
        h1 = F.relu(self.conv1(x))
        h2 = F.relu(self.conv2(h1))
        h3 = F.relu(self.conv3(h2))
        h3 = h3 + self.time_cond_mlp1(emb).view(-1, 128, 1, 1)
        h3 = F.relu(self.mid_block1(h3))
        h3 = h3 + self.time_cond_mlp2(emb).view(-1, 128, 1, 1)
        h3 = F.relu(self.mid_block2(h3))
        h = torch.cat([F.relu(self.up1(h3)), h2], dim=1)
        h = F.relu(self.conv4(h))
        h = torch.cat([F.relu(self.up2(h)), h1], dim=1)
        return self.conv6(F.relu(self.conv5(h)))


class SimpleDiffusion:
    """The document's process; `self.time_emb` is the repair."""

    def __init__(self, model, betas, img_size=28):
        self.model, self.betas, self.img_size = model, betas, img_size
        self.num_timesteps = len(betas)
        alphas = 1.0 - betas
        alphas_cumprod = torch.cumprod(alphas, dim=0)
        alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
        self.sqrt_recip_alphas = torch.sqrt(1.0 / alphas)
        self.sqrt_alphas_cumprod = torch.sqrt(alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = torch.sqrt(1.0 - alphas_cumprod)
        self.posterior_variance = betas * (1.0 - alphas_cumprod_prev) / (1.0 - alphas_cumprod)
        self.time_emb = self.get_time_embeddings(self.num_timesteps, 32).to(betas.device)

    def q_sample(self, x_start, t, noise):
        return (
            self.sqrt_alphas_cumprod[t].reshape(-1, 1, 1, 1) * x_start + self.sqrt_one_minus_alphas_cumprod[t].reshape(-1, 1, 1, 1) * noise
        )

    def p_losses(self, x_start, t, cond=None):
        noise = torch.randn_like(x_start)
        x_noisy = self.q_sample(x_start, t, noise=noise)
        predicted_noise = self.model(x_noisy, self.time_emb[t], cond)  # original: self.model(x_noisy, t, cond)
        return F.mse_loss(noise, predicted_noise)

    @torch.no_grad()
    def p_sample(self, x, t, cond=None):
        model_out = self.model(x, self.time_emb[t], cond)  # original: self.model(x, t, cond)
        betas_t = self.betas[t].reshape(-1, 1, 1, 1)
        sqrt_one_minus_alphas_cumprod_t = self.sqrt_one_minus_alphas_cumprod[t].reshape(-1, 1, 1, 1)
        sqrt_recip_alphas_t = self.sqrt_recip_alphas[t].reshape(-1, 1, 1, 1)
        model_mean = sqrt_recip_alphas_t * (x - betas_t * model_out / sqrt_one_minus_alphas_cumprod_t)
        if t[0] == 0:  # original: t == 0
            return model_mean
        return model_mean + torch.sqrt(self.posterior_variance[t].reshape(-1, 1, 1, 1)) * torch.randn_like(x)

    @torch.no_grad()
    def p_sample_loop(self, shape, cond=None, clock=None):
        img = torch.randn(shape, device=self.betas.device)
        for t in range(self.num_timesteps - 1, -1, -1):
            img = self.p_sample(img, torch.full((shape[0],), t, dtype=torch.long, device=self.betas.device), cond)
            if clock is not None and clock.tick(shape[0] / self.num_timesteps):
                break
        return img

    def get_time_embeddings(self, max_timesteps, embedding_dim):
        time_embeddings = torch.zeros(max_timesteps, embedding_dim)
        position = torch.arange(0, max_timesteps, dtype=torch.float)
        div_term = torch.exp(torch.arange(0, embedding_dim, 2) * (-math.log(10000.0) / embedding_dim))
        time_embeddings[:, 0::2] = torch.sin(position[:, None] * div_term)
        time_embeddings[:, 1::2] = torch.cos(position[:, None] * div_term)
        return time_embeddings


def train(diffusion, loader, optimizer, clock):
    """The document's loop, until the time is up."""
    running_loss, device = 0.0, diffusion.betas.device
    while True:
        for imgs, labels in loader:
            imgs, labels = imgs.to(device), labels.to(device)
            cond = F.one_hot(labels, num_classes=10).float()
            t = torch.randint(0, diffusion.num_timesteps, (len(imgs),), device=device).long()
            optimizer.zero_grad()
            loss = diffusion.p_losses(imgs, t, cond=cond)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if clock.steps % 100 == 99:
                print(f"step {clock.steps + 1} loss {running_loss / 100:.4f}", flush=True)
                running_loss = 0.0
            if clock.tick(len(imgs)):
                return clock


def main():
    """Train, sample, save."""
    p = parser(__doc__)
    p.add_argument("--sample-batch", type=int, default=250)
    args = p.parse_args()
    torch.manual_seed(args.seed)
    loader = DataLoader(Items(*load(args.data), lambda image: (to_tensor(image) - 0.5) / 0.5), batch_size=128, shuffle=True)
    model = SimpleUNet().to(args.device)
    diffusion = SimpleDiffusion(model, torch.linspace(1e-4, 0.02, 1000, device=args.device))
    clock = clock_of(args, model)
    if args.sampling:
        cond = F.one_hot(labels_for(args.sample_batch), num_classes=10).float().to(args.device)
        while not clock.over:
            diffusion.p_sample_loop((len(cond), 1, 28, 28), cond, clock)
        return
    train(diffusion, loader, optim.Adam(model.parameters(), lr=1e-4), clock)
    if args.slices:
        return
    labels, start = labels_for(args.n), time.perf_counter()
    conds = F.one_hot(labels, num_classes=10).float().to(args.device).split(args.sample_batch)
    samples = torch.cat([diffusion.p_sample_loop((len(c), 1, 28, 28), cond=c).cpu() for c in conds])
    finish("document_diffusion_repaired", clock, args.out, (samples + 1) / 2, labels, time.perf_counter() - start)


if __name__ == "__main__":
    main()
