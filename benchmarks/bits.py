"""The table of docs/iddpm.md: bits per dimension of one trained `iddpm` with learned and fixed variances, few steps, shorter chains, and its flow.

    pixelkiln train iddpm --data digits --out runs/iddpm --size tiny --steps 3000
    python benchmarks/bits.py runs/iddpm                    # about a minute on one core
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace

import torch
from torch import Tensor

from pixelkiln.core.protocols import Score
from pixelkiln.core.rng import generator
from pixelkiln.core.types import Condition
from pixelkiln.data import open_source
from pixelkiln.engine.sample import load
from pixelkiln.methods.iddpm import IDDPM
from pixelkiln.solvers.diffusion import Diffusion


def shorter(model: IDDPM, T: int) -> IDDPM:
    """The same network with a chain of T steps."""
    made = IDDPM(model.info, replace(model.config, T=T))
    made.load_state_dict(model.state_dict())
    return made.eval()


def fixed(model: IDDPM, f: float) -> IDDPM:
    """The same means with the log-variance f log beta + (1 - f) log beta_tilde."""
    made = shorter(model, model.config.T)
    both = made.both

    def constant(xt: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        out, share = both(xt, t, cond)
        return out, torch.full_like(share, f)

    made.both = constant  # type: ignore[method-assign]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Bits per dimension of an iddpm, in several ways.")
    parser.add_argument("run")
    parser.add_argument("-n", type=int, default=100, help="test images")
    args = parser.parse_args()
    trained = load(args.run, "cpu", "fp32")
    model = trained.method.eval()
    assert isinstance(model, IDDPM), "an iddpm, please"
    x = open_source(trained.facts["data"]["source"], trained.opened.stage.data, "test").images[: args.n].float() / 127.5 - 1
    dims, T = model.shape.numel, model.config.T

    def say(name: str, score: Score) -> None:
        bits = -(score.nats / dims + (score.per_dim or 0.0)) / math.log(2)
        print(f"{name:32} {float(bits.mean()):.3f} ± {float(bits.std()) / len(x) ** 0.5:.3f}   {score.how}", flush=True)

    for steps in (50, 100, 200, T):
        say("learned variance", model.log_prob(x, steps, generator(0, "bits")))
    for f, name in ((0.0, "beta_tilde"), (1.0, "beta")):
        say(name, fixed(model, f).log_prob(x, 200, generator(0, "bits")))
    for short in (250, 50, 10):
        say(f"a chain of {short} steps", shorter(model, short).log_prob(x, short, generator(0, "bits")))
    for evaluations in (40, 100, 400):
        say("density along the flow", Diffusion.log_prob(model, x, evaluations, generator(0, "bits")))


if __name__ == "__main__":
    main()
