"""The classifier of noisy images: its coordinates, its losses, its report, and what is said when it is asked to draw."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from pixelkiln.cli.main import main
from pixelkiln.core.protocols import Classifier
from pixelkiln.core.types import Batch, Condition, DataInfo, ImageShape, Moment, UserError
from pixelkiln.engine.accuracy import recognized
from pixelkiln.methods.classifier import NoisyClassifier, NoisyClassifierConfig
from pixelkiln.nets.unet import UNetConfig

NET = UNetConfig(width=16, mults=(1, 2), blocks=1, attention=(), patch=1)
INFO = DataInfo(ImageShape(1, 8, 8), ("dark", "bright"))


def made() -> NoisyClassifier:
    torch.manual_seed(0)
    method = NoisyClassifier(INFO, NoisyClassifierConfig(NET, 32))
    for p in method.parameters():
        torch.nn.init.normal_(p, std=0.2)  # blocks end in zeros otherwise
    return method.eval()


def test_logits_are_in_variance_exploding_coordinates() -> None:
    """What it is trained on, xt = alpha x0 + sigma eps at t, is x / sqrt(1 + s^2) at s = sigma / alpha."""
    method, gen = made(), torch.Generator().manual_seed(1)
    x0, eps = torch.rand(3, 1, 8, 8, generator=gen) * 2 - 1, torch.randn(3, 1, 8, 8, generator=gen)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    s = method.path.ratio(t)
    found = method.logits(x0 + s.float().view(-1, 1, 1, 1) * eps, s.float())
    torch.testing.assert_close(found, method.net(method.path.noised(x0, eps, t), t.float()), atol=2e-4, rtol=1e-3)
    assert torch.isfinite(method.logits(1e3 * eps, torch.full((3,), 1e3))).all()  # noisier than its path, as some models start


def test_the_gradient_at_one_image_knows_nothing_of_the_others() -> None:
    method, gen = made(), torch.Generator().manual_seed(2)
    x = torch.randn(4, 1, 8, 8, generator=gen).requires_grad_()
    (grad,) = torch.autograd.grad(method.logits(x, torch.full((4,), 0.5))[1].sum(), x)
    assert grad[1].abs().sum() > 0
    assert grad[[0, 2, 3]].abs().sum() == 0


def test_images_without_a_label_are_left_out_of_the_loss() -> None:
    method, gen = made(), torch.Generator().manual_seed(3)
    x = torch.rand(6, 1, 8, 8, generator=gen)
    torch.manual_seed(4)
    none = method.loss(Batch(x, Condition(label=torch.full((6,), -1))), Moment(0, 1, 0))
    assert none["loss"] == 0
    torch.manual_seed(4)
    some = method.loss(Batch(x, Condition(label=torch.tensor([0, -1, -1, -1, -1, -1]))), Moment(0, 1, 0))
    torch.manual_seed(4)
    other = method.loss(Batch(x, Condition(label=torch.tensor([0, -1, -1, -1, -1, 1]))), Moment(0, 1, 0))
    assert some["loss"] > 0
    assert some["loss"] != other["loss"]
    with pytest.raises(UserError, match="two classes"):
        NoisyClassifier(DataInfo(INFO.shape), NoisyClassifierConfig(NET))


class Bright(Classifier):
    """The exact classifier of two constant images, -1/2 and 1/2, among D pixels: logit 2 * sum(x) / 2 / s^2."""

    def logits(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        total = x.flatten(1).sum(1) / 2 / sigma**2
        return torch.stack([-total, total], 1)


def test_recognized_is_the_closed_form() -> None:
    """Right with probability Phi(sqrt(D) / 2 / s), for D pixels."""
    label = torch.arange(20_000) % 2
    x0 = (label - 0.5).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    for s in (0.5, 2.0, 20.0):
        want = 0.5 * (1 + math.erf(math.sqrt(4) * 0.5 / s / math.sqrt(2)))
        assert recognized(Bright(), x0, label, s, seed=0) == pytest.approx(want, abs=0.015)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained it recognizes clean digits and not noise; its report shows that; it draws nothing, and guides a model."""
    run, base, guided = (str(tmp_path / n) for n in ("c", "b", "g"))
    assert main(["train", "classifier", "--data", "digits", "--out", run, "--size", "tiny", "--steps", "150", "--quiet"]) == 0
    records = [json.loads(line) for line in (tmp_path / "c" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["accuracy_low_noise"] > 0.6
    page = (tmp_path / "c" / "report.html").read_text()
    assert "What it recognizes" in page
    assert not re.search("<h2>(Samples|Nearest|From noise)", page)
    assert not list((tmp_path / "c" / "samples").glob("*.png"))
    for words in (["sample", run, "--out", str(tmp_path / "x.png")], ["sample", run, "--label", "3", "--out", str(tmp_path / "x.png")], ["evaluate", run]):
        assert main([*words, "--quiet"]) == 2
        assert "does not generate" in capsys.readouterr().err
    assert main(["train", "ddpm", "--data", "digits", "--out", base, "--size", "tiny", "--steps", "2", "--quiet"]) == 0
    parents = ["--parent", f"base={base}", "--parent", f"classifier={run}"]
    assert main(["train", "classifier-guided", "--out", guided, "--size", "tiny", "--quiet", *parents]) == 0
    assert main(["sample", guided, "--label", "3", "--guidance", "2", "-n", "2", "--out", str(tmp_path / "y.npz"), "--quiet"]) == 0
