"""What the discriminator is shown of an image: noise and augmentation, the same for real and generated images, and gradients pass through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor, nn

from ..core.types import Moment
from ..layers.ada import Augmentations, Groups
from ..layers.diffaugment import diffaugment, translated

__all__ = ["Shown", "signs"]

EVERY, HIGHEST = 4, 0.8  # steps between two looks at D's answers; above 0.8 augmentations leak into what is generated
MIDDLE: Mapping[str, float] = {"minimax": 0.0, "non-saturating": 0.0, "hinge": 0.0, "least-squares": 0.5}  # D's answer where it cannot tell


@final
class Shown(nn.Module):
    """x (n, C, H, W) -> what D sees of it, with fresh randomness each time. `augment`: "diffaugment" (Zhao et al. 2020, arXiv 2006.10738) or
    "ada" (Karras et al. 2020, arXiv 2006.06676), whose probability p and sum of signs are buffers. Noise comes first: sigma (1 - progress / until)."""

    p: Tensor
    signs: Tensor

    def __init__(self, augment: Literal["none", "diffaugment", "ada"], noise: float, until: float, ada: Groups = "bgc") -> None:
        super().__init__()
        self.kind, self.noise, self.until = augment, noise, until
        self.augmentations = Augmentations(ada) if augment == "ada" else None
        if augment == "ada":
            self.register_buffer("p", torch.zeros(()))
            self.register_buffer("signs", torch.zeros(()))

    def forward(self, x: Tensor, moment: Moment) -> Tensor:
        """Noise, then the augmentation."""
        sigma = self.noise * max(0.0, 1 - moment.progress / self.until) if self.until else 0.0
        if sigma:
            x = x + sigma * torch.randn_like(x)
        if self.augmentations is not None:
            augmented: Tensor = self.augmentations(x, self.p)
            return augmented
        return diffaugment(x) if self.kind == "diffaugment" else x

    def moved(self, x: Tensor) -> Tensor:
        """The change that consistency regularisation asks D not to mind: a shift by up to an eighth of the side, zeros moved in."""
        return translated(x)

    def adapt(self, signs: Tensor, moment: Moment, target: float, images: float) -> None:
        """p rises while the mean sign of D's answers to real images, over four steps, is above the target, else it falls; by 1 in so many images.

        r_t = E[sign D(x)]: Karras et al. 2020, arXiv 2006.06676, eq. 1 and section 3. p is kept in [0, 0.8]. A step's sign is that of D's last
        turn, a mean over all parts of its batch; images are counted by G's steps, of one batch each.
        """
        self.signs += signs
        if moment.step % EVERY == EVERY - 1:
            batch = moment.images / moment.step
            self.p += torch.sign(self.signs / EVERY - target) * EVERY * batch / images
            self.p.clamp_(0, HIGHEST)
            self.signs.zero_()


def signs(real: Tensor, fake: Tensor, objective: str) -> Tensor:
    """E[sign(D(x) - m)] in [-1, 1] from logits (n,), a scalar without a graph. m is what D answers when it cannot tell: 0 for cross-entropies and the
    hinge, 1/2 for least squares (targets 0 and 1); where only differences of answers count (wasserstein, relativistic), midway between the two means."""
    a, b = real.detach().float(), fake.detach().float()
    middle = MIDDLE[objective] if objective in MIDDLE else (a.mean() + b.mean()) / 2
    return (a - middle).sign().mean()
