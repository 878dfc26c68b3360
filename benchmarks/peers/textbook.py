"""Peer: the conditional U-Net and the convolutional VAE as a textbook trains them: fp32, default layout, PIL images one at a time through a
DataLoader with two workers, torch.optim.Adam, the loss read after every step; the U-Net samples by 1,000 ancestral steps (Ho et al. 2020).

    python benchmarks/peers/textbook.py --net unet --data ../shared/data/mnist --slices

Written for speed.py. Both nets have the layers and widths of pixelkiln's (the U-Net's norms have 8 groups, as usual, where pixelkiln's have what
its authors found quick), so that both programs have the same parameters and nearly the same arithmetic, which speed.py records.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from common import Items, clock_of, labels_for, load, parser, to_tensor
from torch import nn, optim
from torch.utils.data import DataLoader

__all__: list[str] = []

GROUPS = 8


class Attention(nn.Module):
    """Self-attention over the pixels, heads of 64 channels."""

    def __init__(self, channels):
        super().__init__()
        self.heads = max(1, channels // 64)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).unbind(1)
        weights = torch.softmax(torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(c // self.heads), dim=-1)
        return x + self.proj(torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(b, c, h, w))


class Block(nn.Module):
    """Residual block; the time's vector scales and shifts between the two convolutions."""

    def __init__(self, c_in, c_out, dim, attend):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(GROUPS, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(dim, 2 * c_out)
        self.norm2, self.conv2 = nn.GroupNorm(GROUPS, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attend = Attention(c_out) if attend else nn.Identity()

    def forward(self, x, vec):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(vec)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.attend(self.skip(x) + h)


class UNet(nn.Module):
    """Levels of width * mults channels, one residual block each on the way down and two on the way up, attention at the lowest."""

    def __init__(self, channels, width, mults, blocks, dim, classes=10):
        super().__init__()
        widths = [width * m for m in mults]
        low, self.width = len(widths) - 1, width
        self.time = nn.Sequential(nn.Linear(width, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(classes + 1, dim)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up, skips, c = nn.ModuleList(), nn.ModuleList(), [width], width
        for i, w in enumerate(widths):
            if i:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)
            for _ in range(blocks):
                self.down.append(Block(c, w, dim, i == low))
                c = w
                skips.append(c)
        self.middle = nn.ModuleList([Block(c, c, dim, True), Block(c, c, dim, False)])
        for i, w in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(Block(c + skips.pop(), w, dim, i == low))
                c = w
            if i:
                self.up.append(nn.Conv2d(c, c, 3, padding=1))
        self.norm, self.head = nn.GroupNorm(GROUPS, c), nn.Conv2d(c, channels, 3, padding=1)

    def forward(self, x, t, label):
        freq = torch.exp(-math.log(10000) * torch.arange(self.width // 2, device=x.device) / (self.width // 2))
        angle = t[:, None].float() * freq
        vec = F.silu(self.time(torch.cat([angle.cos(), angle.sin()], dim=1)) + self.label(label))
        h = self.stem(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, vec) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, vec)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], dim=1), vec) if isinstance(layer, Block) else layer(F.interpolate(h, scale_factor=2))
        return self.head(F.silu(self.norm(h)))


class ConvVAE(nn.Module):
    """Halve by strided convolutions while the sides are even and above 4, hidden layer, latent; and back by transposed ones."""

    def __init__(self, channels, side, width, hidden, latent):
        super().__init__()
        sides = [side]
        while sides[-1] > 4 and sides[-1] % 2 == 0:
            sides.append(sides[-1] // 2)
        widths = [channels] + [width * min(2**i, 4) for i in range(len(sides) - 1)]
        grid = widths[-1] * sides[-1] ** 2
        down, up = [], []
        for a, b in zip(widths, widths[1:], strict=False):
            down += [nn.Conv2d(a, b, 4, 2, 1), nn.ReLU()]
            up = [nn.ReLU(), nn.ConvTranspose2d(b, a, 4, 2, 1), *up]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(grid, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        start = nn.Unflatten(1, (widths[-1], sides[-1], sides[-1]))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, grid), start, *up)

    def loss(self, x):
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        out = self.decoder(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))
        rec = F.binary_cross_entropy_with_logits(out, x, reduction="sum")
        return rec - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


class Diffusion:
    """The process with 1,000 linear steps: the loss on the noise, and one ancestral step (Ho et al. 2020, algorithms 1 and 2)."""

    def __init__(self, model, device):
        self.model, self.betas = model, torch.linspace(1e-4, 0.02, 1000, device=device)
        self.bar = torch.cumprod(1 - self.betas, dim=0)

    def loss(self, x, label):
        t, noise = torch.randint(0, 1000, (len(x),), device=x.device), torch.randn_like(x)
        bar = self.bar[t].view(-1, 1, 1, 1)
        return F.mse_loss(self.model(bar.sqrt() * x + (1 - bar).sqrt() * noise, t, label), noise)

    @torch.no_grad()
    def step(self, x, t, label):
        out = self.model(x, torch.full((len(x),), t, device=x.device), label)
        mean = (x - self.betas[t] / (1 - self.bar[t]).sqrt() * out) / (1 - self.betas[t]).sqrt()
        return mean + self.betas[t].sqrt() * torch.randn_like(x) if t else mean


def train(loss_of, loader, optimizer, clock, device):
    """The loop, until the time is up."""
    while True:
        for x, label in loader:
            x, label = x.to(device), label.to(device)
            optimizer.zero_grad()
            loss = loss_of(x, label)
            loss.backward()
            optimizer.step()
            loss.item()
            if clock.tick(len(x)):
                return


def main():
    """Train, or draw, until there are no more orders."""
    p = parser(__doc__)
    p.add_argument("--net", choices=["unet", "vae"], required=True)
    p.add_argument("--width", type=int, default=48)
    p.add_argument("--mults", type=int, nargs="+", default=[1, 2])
    p.add_argument("--blocks", type=int, default=1, help="residual blocks a level")
    p.add_argument("--dim", type=int, default=192, help="of the vector of time and label")
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--latent", type=int, default=20)
    p.add_argument("--batch", type=int, default=128)
    args = p.parse_args()
    torch.manual_seed(args.seed)
    images, labels = load(args.data)
    channels, side = images.shape[3], images.shape[1]
    if args.net == "vae":
        model = ConvVAE(channels, side, args.width, args.hidden, args.latent).to(args.device)
        transform, loss_of = to_tensor, lambda x, _: model.loss(x)
    else:
        model = UNet(channels, args.width, args.mults, args.blocks, args.dim).to(args.device)
        diffusion = Diffusion(model, args.device)
        transform, loss_of = (lambda image: (to_tensor(image) - 0.5) / 0.5), diffusion.loss
    if args.sampling:
        clock, label = clock_of(args, model), labels_for(args.batch).to(args.device)
        while not clock.over:
            x = torch.randn(args.batch, channels, side, side, device=args.device)
            for t in reversed(range(1000)):
                x = diffusion.step(x, t, label)
                if clock.tick(len(x) / 1000):
                    break
        return
    loader = DataLoader(Items(images, labels, transform), batch_size=args.batch, shuffle=True, drop_last=True, num_workers=args.workers)
    train(loss_of, loader, optim.Adam(model.parameters(), lr=1e-3), clock_of(args, model), args.device)


if __name__ == "__main__":
    main()
