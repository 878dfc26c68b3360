"""Is our Inception network torch-fidelity's? Both with the same random weights, in one process.

    pip download --no-deps torch-fidelity==0.4.0 && unzip -d peer torch_fidelity-0.4.0-py3-none-any.whl
    python benchmarks/inception.py peer

Only its network's file is imported: the package itself needs torchvision.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import nn

from pixelkiln.engine.inception import tf_resize
from pixelkiln.nets.inception import Inception


def main(folder: Path) -> None:
    """Print the largest difference at each depth, beside the deviation of the features."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(folder / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    peer = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    ours = Inception().eval()
    for part in ours.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    with tempfile.TemporaryDirectory() as temp:
        torch.save(ours.state_dict(), Path(temp) / "w.pth")
        names = ["64", "192", "768", "2048", "logits_unbiased"]
        theirs = peer.FeatureExtractorInceptionV3("inception", names, feature_extractor_weights_path=str(Path(temp) / "w.pth"))
    images = torch.randint(0, 256, (4, 3, 40, 32), dtype=torch.uint8)
    with torch.no_grad():
        wanted = dict(zip(names, theirs(images)))
        maps = ours.stages((tf_resize(images.float()) - 128) / 128)
        found = dict(zip(names, [m.mean((2, 3)) for m in maps]))
        found["logits_unbiased"] = ours.logits(found["2048"])
    for name in names:
        print(f"{name:>16}: largest difference {(wanted[name] - found[name]).abs().max():.2g}, deviation {wanted[name].std():.3g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
