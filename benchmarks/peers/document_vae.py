"""Peer: the VAE that the project's source document lists ("PyTorch实现VAE"), on MNIST: 784-400-20, BCE, Adam 1e-3, batch 128, fp32.

Changed from the original:
- torchvision's MNIST and ToTensor are a Dataset that turns one image at a time from PIL into a float tensor, as they do;
- training stops after --minutes of wall-clock instead of 20 epochs, in the middle of an epoch if need be;
- plots, checkpoints, the latent walk and the samples after every fifth epoch are left out (none of them trains);
- a seed; -n prior samples, the decoder's means as in the original, saved as 8-bit images.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from common import Items, clock_of, finish, load, parser, to_tensor
from torch import nn, optim
from torch.utils.data import DataLoader

__all__: list[str] = []


class VAE(nn.Module):
    """The document's network."""

    def __init__(self, input_dim=784, hidden_dim=400, latent_dim=20):
        super().__init__()
        self.fc1 = nn.Linear(input_dim, hidden_dim)
        self.fc_mu = nn.Linear(hidden_dim, latent_dim)
        self.fc_logvar = nn.Linear(hidden_dim, latent_dim)
        self.fc3 = nn.Linear(latent_dim, hidden_dim)
        self.fc4 = nn.Linear(hidden_dim, input_dim)

    def encode(self, x):
        h = F.relu(self.fc1(x))
        return self.fc_mu(h), self.fc_logvar(h)

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        return mu + torch.randn_like(std) * std

    def decode(self, z):
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x):
        mu, logvar = self.encode(x.view(-1, 784))
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar


def vae_loss(recon_x, x, mu, logvar, beta=1.0):
    """Sums over the batch, as the document has them."""
    recon_loss = F.binary_cross_entropy(recon_x, x.view(-1, 784), reduction="sum")
    kl_loss = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return recon_loss + beta * kl_loss


def train(model, loader, optimizer, clock, device):
    """The document's loop, until the time is up."""
    model.train()
    while True:
        for data, _ in loader:
            data = data.to(device)
            optimizer.zero_grad()
            recon_batch, mu, logvar = model(data)
            loss = vae_loss(recon_batch, data, mu, logvar)
            loss.backward()
            value = loss.item()
            optimizer.step()
            if clock.steps % 1000 == 0:
                print(f"step {clock.steps} loss {value / len(data):.3f}", flush=True)
            if clock.tick(len(data)):
                return clock


def main():
    """Train, sample, save."""
    args = parser(__doc__).parse_args()
    torch.manual_seed(args.seed)
    loader = DataLoader(Items(*load(args.data), to_tensor), batch_size=128, shuffle=True)
    model = VAE().to(args.device)
    clock = train(model, loader, optim.Adam(model.parameters(), lr=1e-3), clock_of(args, model), args.device)
    if args.slices:
        return
    model.eval()
    start = time.perf_counter()
    with torch.no_grad():
        samples = model.decode(torch.randn(args.n, 20, device=args.device)).cpu().view(-1, 1, 28, 28)
    finish("document_vae", clock, args.out, samples, None, time.perf_counter() - start)


if __name__ == "__main__":
    main()
