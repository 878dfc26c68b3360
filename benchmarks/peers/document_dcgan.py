"""Peer: the DCGAN that the project's source document lists ("DCGAN实现"): 64 pixels, ngf = ndf = 64, BCE on a sigmoid, Adam 2e-4, fp32.

Changed from the original:
- torchvision's CIFAR10 is a Dataset that resizes (bilinear, antialiased) and normalises one image at a time, in four workers as before;
- with --data an IDX folder it trains on MNIST, and both nets have one channel;
- training stops after --minutes of wall-clock instead of 25 epochs;
- plots, checkpoints and the grids of the fixed noise are left out (none of them trains);
- --seed instead of 42; at the end -n samples from the generator, in training mode (batch statistics, 128 at a time) as the
  original draws its grids, saved at 64 pixels.
"""

from __future__ import annotations

import time

import torch
from common import Items, clock_of, finish, load, parser, to_tensor
from PIL import Image
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

__all__: list[str] = []

BATCH, SIDE, NZ, NGF, NDF, LR, BETA1 = 128, 64, 100, 64, 64, 0.0002, 0.5


def transform(image: Image.Image) -> Tensor:
    """Resize(64), CenterCrop(64), ToTensor, Normalize(0.5, 0.5) for one square image."""
    return (to_tensor(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) - 0.5) / 0.5


def weights_init(m):
    """The document's."""
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)


def generator(nz, ngf, nc):
    """The document's Generator."""
    layers = [nn.ConvTranspose2d(nz, ngf * 8, 4, 1, 0, bias=False), nn.BatchNorm2d(ngf * 8), nn.ReLU(True)]
    for k in (8, 4, 2):
        layers += [nn.ConvTranspose2d(ngf * k, ngf * k // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ngf * k // 2), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh())


def discriminator(ndf, nc):
    """The document's Discriminator."""
    layers = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for k in (1, 2, 4):
        layers += [nn.Conv2d(ndf * k, ndf * k * 2, 4, 2, 1, bias=False), nn.BatchNorm2d(ndf * k * 2), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False), nn.Sigmoid())


def train(net_g, net_d, loader, clock, device):
    """The document's loop, until the time is up."""
    criterion = nn.BCELoss()
    optimizer_d = optim.Adam(net_d.parameters(), lr=LR, betas=(BETA1, 0.999))
    optimizer_g = optim.Adam(net_g.parameters(), lr=LR, betas=(BETA1, 0.999))
    while True:
        for real, _ in loader:
            real = real.to(device)
            net_d.zero_grad()
            b_size = real.size(0)
            label = torch.full((b_size,), 1.0, device=device)
            output = net_d(real).view(-1)
            err_d_real = criterion(output, label)
            err_d_real.backward()
            d_x = output.mean().item()

            fake = net_g(torch.randn(b_size, NZ, 1, 1, device=device))
            label.fill_(0)
            output = net_d(fake.detach()).view(-1)
            err_d_fake = criterion(output, label)
            err_d_fake.backward()
            d_g_z1 = output.mean().item()
            optimizer_d.step()

            net_g.zero_grad()
            label.fill_(1)
            output = net_d(fake).view(-1)
            err_g = criterion(output, label)
            err_g.backward()
            d_g_z2 = output.mean().item()
            optimizer_g.step()

            if clock.steps % 50 == 0:
                err_d = (err_d_real + err_d_fake).item()
                shown = f"Loss_D {err_d:.3f} Loss_G {err_g.item():.3f} D(x) {d_x:.3f} D(G(z)) {d_g_z1:.3f}/{d_g_z2:.3f}"
                print(f"step {clock.steps} {shown}", flush=True)
            if clock.tick(b_size):
                return clock


def main():
    """Train, sample, save."""
    args = parser(__doc__).parse_args()
    torch.manual_seed(args.seed)
    images, labels = load(args.data)
    nc = images.shape[-1]
    loader = DataLoader(Items(images, labels, transform), batch_size=BATCH, shuffle=True, num_workers=4)
    net_g, net_d = generator(NZ, NGF, nc).apply(weights_init), discriminator(NDF, nc).apply(weights_init)
    net_g, net_d = net_g.to(args.device), net_d.to(args.device)
    clock = train(net_g, net_d, loader, clock_of(args, net_g, net_d), args.device)
    if args.slices:
        return
    start = time.perf_counter()
    with torch.no_grad():
        batches = [net_g(torch.randn(BATCH, NZ, 1, 1, device=args.device)).cpu() for _ in range(-(-args.n // BATCH))]
    samples = (torch.cat(batches)[: args.n] + 1) / 2
    finish("document_dcgan", clock, args.out, samples, None, time.perf_counter() - start)


if __name__ == "__main__":
    main()
