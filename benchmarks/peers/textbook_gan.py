"""Peer: DCGAN and WGAN-GP as a textbook trains them: fp32, default layout, PIL images one at a time through a DataLoader with two workers, torch.optim.Adam, BCELoss on a sigmoid
(WGAN-GP: the mean of D's answers and the penalty), the losses read after every step.

    python benchmarks/peers/textbook_gan.py --game dcgan --data ../shared/data/mnist --slices

Written for adversaries.py. The nets have the layers and widths of pixelkiln's DCGAN at the data's size (28 or 32 pixels), so that both programs have the same parameters; a step is one of the
generator, with the discriminator's step (WGAN-GP: five, each with images of its own) before it, and counts as one batch. As usual, D's loss on real and on generated images is backpropagated
in two calls, and G is judged on the images that D has just seen.
"""

from __future__ import annotations

import time

import torch
from common import Items, clock_of, finish, load, parser, to_tensor
from torch import nn, optim
from torch.utils.data import DataLoader

__all__: list[str] = []


def sizes(side, width):
    """Side of the smallest grid, and channels after each halving."""
    halvings = 0
    while side % 2 == 0 and side >= 8:
        side, halvings = side // 2, halvings + 1
    return side, [width * min(2**i, 8) for i in range(halvings)]


def weights_init(m):
    """N(0, 0.02) for convolutions and linear layers, N(1, 0.02) for norms (Radford et al. 2016)."""
    if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(m.weight, 0.0, 0.02)
    elif isinstance(m, nn.BatchNorm2d):
        nn.init.normal_(m.weight, 1.0, 0.02)
        nn.init.zeros_(m.bias)


class Generator(nn.Module):
    """Linear, then transposed convolutions with BatchNorm and ReLU, tanh."""

    def __init__(self, latent, side, channels, width):
        super().__init__()
        grid, widths = sizes(side, width)
        c = widths[::-1]
        layers = [nn.Linear(latent, c[0] * grid * grid, bias=False), nn.Unflatten(1, (c[0], grid, grid)), nn.BatchNorm2d(c[0]), nn.ReLU(True)]
        for a, b in zip(c, c[1:], strict=False):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
        self.main = nn.Sequential(*layers, nn.ConvTranspose2d(c[-1], channels, 4, 2, 1), nn.Tanh())

    def forward(self, z):
        return self.main(z)


class Discriminator(nn.Module):
    """Strided convolutions with BatchNorm (WGAN-GP: layer norm) and LeakyReLU, linear; a sigmoid for BCELoss."""

    def __init__(self, side, channels, width, critic):
        super().__init__()
        grid, widths = sizes(side, width)
        layers = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.GroupNorm(1, b) if critic else nn.BatchNorm2d(b), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Flatten(), nn.Linear(widths[-1] * grid * grid, 1)]
        self.main = nn.Sequential(*layers, nn.Identity() if critic else nn.Sigmoid())

    def forward(self, x):
        return self.main(x).view(-1)


def endless(loader, device):
    """Batches for ever."""
    while True:
        for x, _ in loader:
            yield x.to(device)


def train_dcgan(net_g, net_d, batches, latent, clock, device):
    """Goodfellow et al. 2014, algorithm 1, with the non-saturating loss."""
    criterion = nn.BCELoss()
    optimizer_d = optim.Adam(net_d.parameters(), lr=5e-4, betas=(0.5, 0.999))
    optimizer_g = optim.Adam(net_g.parameters(), lr=5e-4, betas=(0.5, 0.999))
    for real in batches:
        ones, zeros = torch.ones(len(real), device=device), torch.zeros(len(real), device=device)
        optimizer_d.zero_grad()
        loss_real = criterion(net_d(real), ones)
        loss_real.backward()
        fake = net_g(torch.randn(len(real), latent, device=device))
        loss_fake = criterion(net_d(fake.detach()), zeros)
        loss_fake.backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        loss_g = criterion(net_d(fake), ones)
        loss_g.backward()
        optimizer_g.step()
        losses = loss_real.item() + loss_fake.item(), loss_g.item()
        assert all(loss == loss for loss in losses), "diverged"
        if clock.tick(len(real)):
            return


def gradient_penalty(net_d, real, fake):
    """Gulrajani et al. 2017, eq. 3."""
    a = torch.rand(len(real), 1, 1, 1, device=real.device)
    u = (a * real + (1 - a) * fake).requires_grad_(True)
    out = net_d(u)
    (grad,) = torch.autograd.grad(out, u, grad_outputs=torch.ones_like(out), create_graph=True, retain_graph=True)
    return ((grad.view(len(real), -1).norm(2, dim=1) - 1) ** 2).mean()


def train_wgan_gp(net_g, net_d, batches, latent, clock, device):
    """Gulrajani et al. 2017, algorithm 1: five steps of the critic, then one of the generator."""
    optimizer_d = optim.Adam(net_d.parameters(), lr=2e-4, betas=(0.0, 0.9))
    optimizer_g = optim.Adam(net_g.parameters(), lr=2e-4, betas=(0.0, 0.9))
    for number, real in enumerate(batches):
        optimizer_d.zero_grad()
        fake = net_g(torch.randn(len(real), latent, device=device)).detach()
        loss_d = net_d(fake).mean() - net_d(real).mean() + 10 * gradient_penalty(net_d, real, fake)
        loss_d.backward()
        optimizer_d.step()
        losses = [loss_d.item()]
        if number % 5 == 4:
            optimizer_g.zero_grad()
            loss_g = -net_d(net_g(torch.randn(len(real), latent, device=device))).mean()
            loss_g.backward()
            optimizer_g.step()
            losses.append(loss_g.item())
            if clock.tick(len(real)):
                return
        assert all(loss == loss for loss in losses), "diverged"


def main():
    """Train, sample, save; or take turns."""
    p = parser(__doc__)
    p.add_argument("--game", choices=["dcgan", "wgan-gp"], required=True)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--batch", type=int, default=64)
    args = p.parse_args()
    torch.manual_seed(args.seed)
    images, labels = load(args.data)
    side, channels, critic = images.shape[1], images.shape[3], args.game == "wgan-gp"
    latent = 128 if critic else 100
    net_g = Generator(latent, side, channels, args.width).apply(weights_init).to(args.device)
    net_d = Discriminator(side, channels, args.width, critic).apply(weights_init).to(args.device)
    loader = DataLoader(Items(images, labels, lambda image: (to_tensor(image) - 0.5) / 0.5), batch_size=args.batch, shuffle=True, drop_last=True, num_workers=2)
    clock = clock_of(args, net_g, net_d)
    (train_wgan_gp if critic else train_dcgan)(net_g, net_d, endless(loader, args.device), latent, clock, args.device)
    if args.slices:
        return
    begin = time.perf_counter()
    with torch.no_grad():  # in training mode, by batch statistics, as textbooks draw their grids
        found = [net_g(torch.randn(args.batch, latent, device=args.device)).cpu() for _ in range(-(-args.n // args.batch))]
    finish(f"textbook_{args.game}", clock, args.out, (torch.cat(found)[: args.n] + 1) / 2, None, time.perf_counter() - begin)


if __name__ == "__main__":
    main()
