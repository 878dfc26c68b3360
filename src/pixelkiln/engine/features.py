"""The default feature extractor: a small classifier, trained once per data set and kept. Its Frechet distance is `fd`, never "FID".

Folder of one extractor, under $PIXELKILN_CACHE/extractors: weights.safetensors, features-* and statistics-*.safetensors, each with a JSON
card beside it that holds its SHA-256. What does not match its card is made again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.files import cache_dir as default_cache
from ..core.files import locked, sha256
from ..core.images import from_uint8
from ..core.rng import generator, permutation, seed_all
from ..core.types import ImageShape, UserError
from ..data import ImageSet
from ..data.prepare import resize, to_channels
from ..metrics import Moments, accuracy
from ..nets.classifier import Classifier
from .kept import keep, recall, writable

__all__ = ["Extractor", "ExtractorConfig", "conform", "extractor_for", "is_kept"]

VERSION = 1  # of this protocol: change it and everything is trained anew
SIDE = 64  # larger images are made smaller, the longer side to this
BATCH = 256  # images a forward pass
PART = 16 * BATCH  # images of a set that are looked at together
LEAST = 120  # training steps on a small set
CLUSTERS, COMPONENTS, FITTED = 16, 32, 10_000  # k-means of unlabeled images: clusters, principal components, images that PCA is fitted to

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExtractorConfig:
    """How the classifier is trained: `images` seen in all, but at most `epochs` passes or LEAST steps, whichever is more."""

    images: int
    epochs: int = 10
    batch: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    width: int = 16
    seed: int = 0

    @classmethod
    def default(cls, shape: ImageShape) -> ExtractorConfig:
        """Grey: enough for 99 % on MNIST in two passes; RGB: twice the width, five passes over CIFAR-10."""
        return cls(images=120_000) if shape.channels == 1 else cls(images=250_000, width=32)

    def steps(self, num: int) -> int:
        """Number of steps for `num` training images."""
        return max(1, min(self.images, max(self.epochs * num, LEAST * self.batch)) // self.batch)


def conform(images: Tensor, shape: ImageShape) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, *shape): luma or repeated grey, antialiased bicubic resizing, rounded and clamped.

    Errors: `UserError` for anything but uint8 images of 1 or 3 channels (float images are rounded by `to_uint8`, once, not here).
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in {1, 3, shape.channels}:
        raise UserError(f"expected uint8 images (N, 1 or 3, H, W), got {images.dtype} {tuple(images.shape)}: convert them with to_uint8")
    images = images.cpu()
    if shape.channels == 1:
        images = to_channels(images, 1)
    return to_channels(resize(images, shape.height, shape.width), shape.channels)


@final
class Extractor:
    """Features and predictions of 8-bit images, in fp32 and evaluation mode, on the CPU, whatever the batch and the caller's autocast.

    name: "cnn-<digest>", or "cnn-kmeans16-<digest>" where the training images had no labels; weights: digest of the weights;
    It is a `FeatureExtractor`. shape: what every image is converted to; classes: () for clusters; accuracy: on the real test split, None if unknown.
    """

    suffix = ""
    quoted: Mapping[str, str] = {}

    def __init__(self, name: str, net: Classifier, shape: ImageShape, classes: tuple[str, ...], folder: Path, weights: str) -> None:
        self.name, self.shape, self.classes, self.folder, self.weights = name, shape, classes, folder, weights
        self.net: Classifier = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.accuracy: float | None = None

    @property
    def dim(self) -> int:
        """Number of features d."""
        return self.net.dim

    @property
    def num_classes(self) -> int:
        """Classes or clusters."""
        return self.net.head.out_features

    def how(self, shape: Sequence[int]) -> str:
        """What `conform` does to an image (C, H, W), in words."""
        (c, h, w), (channels, height, width) = shape, self.shape
        if tuple(shape) == tuple(self.shape):
            return "none"
        return f"{h}x{w}x{c} to {height}x{width}x{channels}, antialiased bicubic, 8 bits"

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) of any size -> float32 (N, d); scaled so that the training images' total variance is about d."""
        images = conform(images, self.shape)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return torch.cat([self.net.features(from_uint8(part)) for part in torch.split(images, BATCH)])

    def classify(self, features: Tensor) -> Tensor:
        """Features (N, d) -> class (or cluster) int64 (N,)."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self.net.classify(features).argmax(1)

    def predict(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> class (or cluster) int64 (N,)."""
        return self.classify(self.features(images))

    def features_of(self, data: ImageSet, rows: Tensor | None = None) -> Tensor:
        """`features` of a set, or of its rows (n,), kept by the digests of the set, the rows and the weights: n d floats, for what is bounded."""
        which = "" if rows is None else "-" + hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:8]
        file = self.folder / f"features-{data.digest()[:16]}{which}-{self.weights}.safetensors"
        found = recall(file)
        if found is None:
            parts = data.parts(PART) if rows is None else (data.images_of(part) for part in torch.split(rows, PART))
            found = {"features": torch.cat([self.features(part) for part in parts])}
            keep(file, found, {"data": data.name, "split": data.split, "digest": data.digest(), "extractor": self.name})
        return found["features"]

    def probabilities(self, features: Tensor) -> Tensor:
        """Features (N, d) -> p(class or cluster) (N, num_classes)."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self.net.classify(features).softmax(1)

    def stages(self, x: Tensor) -> Sequence[Tensor]:
        """Maps after each convolution of images (N, C, H, W) in [-1, 1] of any size; differentiable."""
        channels, height, width = self.shape
        x = x.mean(1, keepdim=True) if channels == 1 else x.expand(-1, channels, -1, -1)
        if x.shape[2:] != (height, width):
            x = F.interpolate(x, (height, width), mode="bicubic", align_corners=False, antialias=True)
        found = []
        for layer in self.net.body:
            found.append(x := layer(x))
        return found

    def accuracy_on(self, data: ImageSet) -> float | None:
        """Share of a labeled set that is recognized; None without labels or if this extractor knows clusters only."""
        if data.labels is None or not self.classes or not len(data):
            return None
        return accuracy(predicted=torch.cat([self.predict(part) for part in data.parts(PART)]), labels=data.labels.cpu())


def extractor_for(
    reference: ImageSet,
    test: ImageSet | None = None,
    *,
    cache_dir: Path | None = None,
    log: Say | None = None,
    config: ExtractorConfig | None = None,
) -> Extractor:
    """The extractor of a training split: from the cache, or trained now and put there.

    The same data and config give the same extractor on one machine (seeded; the caller's random state is left alone). test: a split to
    measure `accuracy` on. Errors: `UserError` for fewer than 2 images or a cache folder that cannot be written.
    """
    if len(reference) < 2:
        raise UserError(f"{reference.name} {reference.split} holds {len(reference)} images: a feature extractor needs at least 2")
    say = log or (lambda _: None)
    shape = _canonical(reference)
    config = config or ExtractorConfig.default(shape)
    labeled, num_classes, name = _named(reference)
    folder = _folder(reference, name, config, cache_dir)
    file = folder / "weights.safetensors"
    with torch.random.fork_rng(devices=[]):
        seed_all(config.seed, "extractor")
        net = Classifier(shape, num_classes, config.width)
        if not _restore(net, file):
            writable(folder)
            with locked(folder / ".lock", wait=True):  # two processes that want the same one train it once
                if not _restore(net, file):
                    if file.exists():
                        say(f"{file} is damaged: training the feature extractor again")
                    images = torch.cat([conform(part, shape) for part in reference.parts(PART)])
                    labels = reference.labels.cpu() if labeled and reference.labels is not None else _clusters(images, num_classes, config.seed)
                    _train(net, images, labels, config, say)
                    facts = {"name": name, "data": reference.name, "digest": reference.digest(), "version": VERSION}
                    keep(file, net.state_dict(), {**facts, **asdict(config)})
    extractor = Extractor(name, net, shape, reference.classes if labeled else (), folder, sha256(file)[:8])
    if test is not None:
        extractor.accuracy = extractor.accuracy_on(test)
    return extractor


def is_kept(reference: ImageSet, cache_dir: Path | None = None) -> bool:
    """Whether the extractor of a training split, as it is by default, is in the cache."""
    name, config = _named(reference)[2], ExtractorConfig.default(_canonical(reference))
    return recall(_folder(reference, name, config, cache_dir) / "weights.safetensors") is not None


def _named(reference: ImageSet) -> tuple[bool, int, str]:
    """Whether its classes are those of the labels, their number, and the extractor's name."""
    labeled = reference.labels is not None and len(reference.classes) >= 2
    num_classes = len(reference.classes) if labeled else min(CLUSTERS, len(reference))
    return labeled, num_classes, ("cnn-" if labeled else f"cnn-kmeans{num_classes}-") + reference.digest()[:8]


def _folder(reference: ImageSet, name: str, config: ExtractorConfig, cache_dir: Path | None) -> Path:
    """Where the extractor of a training split is kept."""
    how = hashlib.sha256(repr((VERSION, config, reference.digest())).encode()).hexdigest()[:8]
    return Path(cache_dir or default_cache() / "extractors") / f"{name}-{how}"


def _canonical(reference: ImageSet) -> ImageShape:
    """The reference's own shape, made smaller if a side exceeds SIDE."""
    channels, height, width = reference.info.shape
    ratio = min(1.0, SIDE / max(height, width))
    return ImageShape(channels, max(1, round(height * ratio)), max(1, round(width * ratio)))


def _restore(net: Classifier, file: Path) -> bool:
    found = recall(file)
    if found is not None:
        net.load_state_dict(found)
    return found is not None


def _clusters(images: Tensor, num: int, seed: int) -> Tensor:
    """Pseudo-labels (N,): k-means in the first principal components (DeepCluster without its rounds: Caron et al., 2018)."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

    x = (images.flatten(1).float() / 255).numpy()
    some = x[permutation(len(x), seed, "pca")[:FITTED].numpy()]
    pca = PCA(min(COMPONENTS, *some.shape), svd_solver="randomized", random_state=seed).fit(some)
    z = pca.transform(x)
    found = MiniBatchKMeans(num, random_state=seed, n_init=3).fit_predict(z)
    return torch.from_numpy(found).long()


def _batches(images: Tensor, labels: Tensor, config: ExtractorConfig, flip: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (B, C, H, W) in [-1, 1], channels last: shifted by up to 1/8 of the side (edge repeated), mirrored if `flip`."""
    n, _, height, width = images.shape
    pad, gen, epoch = max(1, min(height, width) // 8), generator(config.seed, "extractor augmentation"), 0
    while True:
        order = permutation(n, config.seed, "extractor", epoch)
        for rows in torch.split(order[: max(n - n % config.batch, min(n, config.batch))], config.batch):
            x = F.pad(images[rows].float(), (pad, pad, pad, pad), mode="replicate")
            top, left = torch.randint(0, 2 * pad + 1, (2, len(rows), 1), generator=gen)
            i, j = top + torch.arange(height), left + torch.arange(width)  # (B, H), (B, W)
            if flip:
                j = torch.where(torch.rand(len(rows), 1, generator=gen) < 0.5, j.flip(1), j)
            x = x[torch.arange(len(rows))[:, None, None], :, i[:, :, None], j[:, None, :]]  # (B, H, W, C)
            yield (x / 127.5 - 1).permute(0, 3, 1, 2), labels[rows]
        epoch += 1


def _train(net: Classifier, images: Tensor, labels: Tensor, config: ExtractorConfig, say: Say) -> None:
    """Cross-entropy, SGD with Nesterov momentum, one cycle of the learning rate (Smith and Topin, 2018); then sets the features' scale."""
    steps, capable = config.steps(len(images)), torch.cpu.get_capabilities()
    bf16 = bool(capable.get("avx512_bf16") or capable.get("amx_bf16"))
    net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    opt = torch.optim.SGD(net.parameters(), lr=config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)
    batches = _batches(images, labels, config, flip=images.shape[1] == 3)
    say(f"training the feature extractor of this data set, once: {steps:,} steps of {config.batch} images")
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):  # around the backward pass, too: a caller's would round its products
        for step in range(steps):
            u = step / steps
            opt.param_groups[0]["lr"] = config.lr * (u / 0.25 if u < 0.25 else (1 + math.cos(math.pi * (u - 0.25) / 0.75)) / 2)
            x, y = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):  # a caller's autocast would keep stale casts
                loss = F.cross_entropy(net(x).float(), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            if (step + 1) % max(1, steps // 10) == 0:
                say(f"feature extractor: {100 * (step + 1) // steps} %, cross-entropy {loss.item():.3f}")
    net.eval()
    some = images[permutation(len(images), config.seed, "extractor scale")[:5000]]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        features = torch.cat([net.features(from_uint8(part)) for part in torch.split(some, BATCH)])
    variance = Moments.of(features).cov.trace().item()
    net.scale.fill_(math.sqrt(net.dim / max(variance, 1e-12)))
