"""What each of several processes does for tests/test_parallel.py: torchrun parallel_worker.py OUT."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

import parallel_toys
from pixelkiln.core.catalog import builtin, override
from pixelkiln.core.files import write_json, write_tensors
from pixelkiln.core.protocols import Method
from pixelkiln.core.recipe import EmaConfig, Stage
from pixelkiln.core.rng import seed_all
from pixelkiln.core.types import Ability, Condition, Request
from pixelkiln.data import Feed, open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.log import Log
from pixelkiln.engine.loop import Diverged, Trainer
from pixelkiln.engine.parallel import Apart, join
from pixelkiln.engine.sample import generate, seeds_for
from pixelkiln.engine.train import Order, train
from pixelkiln.engine.where import Where

STEPS, FEW = 20, 5
CASES = {name: (builtin()[name]("tiny").last, 2) for name in ("ddpm", "dcgan", "vae", "vae-mlp", "acgan")}
CASES |= {f"pair-{parts}": (parallel_toys.pair().last, parts) for parts in (2, 4, 6)} | {"plain": (parallel_toys.plain().last, 2)}
CASES["wgan-gp"] = (override(builtin()["wgan-gp"]("tiny"), {"model.rules.critic_steps": "2"}).last, 2)
CASES["r1"] = (override(builtin()["dcgan"]("tiny"), {"model.nets.norm": "layer", "model.rules.r1": "1", "model.rules.r2": "0.5", "model.rules.r_every": "4"}).last, 2)
KEEPING = {  # what else keeps state from step to step; FEW steps, and no samples
    "vqvae": ("vqvae", {}),
    "vq-residual": ("vqvae", {"model.residual": "2", "model.codebook.dead": "0.5"}),
    "simvq": ("vqvae", {"model.codebook": "simvq"}),
    "fsq": ("vqvae", {"model.codebook": "fsq"}),
    "lfq": ("vqvae", {"model.codebook": "lfq"}),
    "sngan": ("sngan", {}),
    "ada": ("dcgan", {"model.rules.augment": "ada", "model.rules.ada_speed": "2000"}),
    "edm2": ("edm2", {}),
    "iddpm": ("iddpm", {"model.resample": "true"}),
    "balance": ("ddpm", {"model.balance": "true"}),
    "dit": ("dit", {}),
    "ve-sde": ("ve-sde", {}),
    "upscale": ("upscale", {}),
    "classifier": ("classifier", {}),
    "biggan": ("biggan", {}),
    "r3gan": ("r3gan", {"model.rules.r1": "-1", "model.rules.r_sigma": "0.01"}),
    "infogan": ("infogan", {}),
    "consistency": ("cgan", {"model.rules.consistency": "10", "model.rules.consistency_fake": "10", "model.rules.augment": "diffaugment", "model.rules.noise": "0.1"}),
    "wgan": ("wgan", {"model.nets.norm": "weight", "model.nets.minibatch": "4"}),
    "muon": ("flow", {"train.opts.main.kind": "muon"}),
}
CASES |= {name: (override(builtin()[recipe]("tiny"), changes).last, 2) for name, (recipe, changes) in KEEPING.items()}
CASES["power"] = (replace(parallel_toys.pair().last, train=replace(parallel_toys.pair().last.train, ema=EmaConfig(kind="power"))), 2)


def trainer(stage: Stage, parts: int, where: Where) -> Trainer:
    """A fresh trainer on digits, as the engine makes it."""
    data = open_source("digits", stage.data, "train")
    method = make(stage, data.info, {}, 0)
    where.place(method)
    config = replace(stage.train, accumulate=parts)
    return Trainer(method, config, Feed(data, config.batch, stage.data, 0, channels_last=True).batch, 0, STEPS, where)


def request(method: Method, num: int) -> Request:
    label = torch.arange(num) % 10 if Ability.LABEL in method.abilities else None
    return Request(seeds_for(3, num), Condition(label=label))


def case(name: str, where: Where) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Losses of all steps, and what a checkpoint would hold, with samples."""
    stage, parts = CASES[name]
    t = trainer(stage, parts, where)
    losses = []
    for k in range(FEW if name in KEEPING else STEPS):
        t.step(k)
        losses.append(t.look())
    for tensors in t.groups().values():
        where.team.check(tensors)
    held = {f"{group}/{key}": v for group, tensors in t.groups().items() for key, v in tensors.items()}
    if name not in KEEPING:
        with t.sampling():
            held["samples"] = generate(t.method, request(t.method, 10), where, batch=4)
    return losses, held


def by_ddp(where: Where) -> dict[str, torch.Tensor]:
    """The plain net trained by torch's own DistributedDataParallel with the loop's seeds: weights after 10 steps."""
    stage = parallel_toys.plain().last
    t = trainer(stage, 2, where)
    net = torch.nn.parallel.DistributedDataParallel(t.method.net)
    opt = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for k in range(10):
        batch = t.draw(k, where.team.rank, 2)
        seed_all(0, "step", k, "mse", 0, where.team.rank)
        x = batch.x.flatten(1)
        opt.zero_grad()
        (net(x + torch.randn_like(x)) - x).square().mean().backward()
        opt.step()
    return {f"net.{k}": v for k, v in t.method.net.state_dict().items()}


def wrong(kind: str, where: Where) -> str:
    """What a process says when process 1 alone goes wrong at step 6."""
    stage = replace(parallel_toys.pair().last, model=parallel_toys.Config(wrong=kind))
    t = trainer(stage, 2, where)
    try:
        for k in range(8):
            t.step(k)
            t.check()
            for tensors in t.groups().values():
                where.team.check(tensors)
    except (Apart, Diverged) as e:
        return f"{type(e).__name__} at {k}: {e}"
    return ""


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with join() as team:
        where = Where("cpu", "fp32", False, 1, team=team)
        for name in CASES:
            losses, held = case(name, where)
            if team.first:
                write_json(out / f"{name}.json", losses)
                write_tensors(out / f"{name}.safetensors", held)
        train(Order("pca", "digits", out / "pca", size="tiny"), where, log=Log(quiet=True))
        ddp = by_ddp(where)
        t = trainer(parallel_toys.plain().last, 2, where)
        for k in range(10):
            t.step(k)
        ours = {k: v for k, v in t.method.state_dict().items()}
        pieces = [torch.full((team.rank + 1, 2), float(team.rank)), torch.arange(3) + team.rank]
        facts = {
            "agreed": team.agree(lambda: {"rank": team.rank, "text": "ä"}),
            "most": team.most(team.rank, -team.rank),
            "deal": list(team.deal(5)),
            "sums": [t.tolist() for t in (pieces[1].clone(), torch.tensor(0.5 * team.rank), torch.tensor([True]).float())],
            "nan": wrong("nan", where),
            "drift": wrong("drift", where),
        }
        did: list[int] = []

        def work(n: int) -> dict[str, torch.Tensor]:
            did.append(n)
            return {"n": torch.tensor([n]), "more": torch.full((n,), float(n))}

        facts["handed"] = [[found["n"].tolist(), found["more"].tolist()] for found in team.in_turn(partial(work, n) for n in range(5))]
        facts["did"] = did
        x = [torch.tensor([1.0, 2.0]) * (team.rank + 1), torch.arange(3) + team.rank, torch.tensor(0.25)]
        team.add_up(x)
        facts["sums"] = [t.tolist() for t in x]
        sent = {"a": torch.tensor(7), "b": torch.tensor([[True], [False]]), "c": torch.zeros(0, 3), "d": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)}
        got = team.spread(sent if team.first else {})
        facts["spread"] = {k: [str(v.dtype), list(v.shape)] for k, v in got.items()}
        facts["d"] = got["d"].tolist()
        if team.first:
            assert all(torch.equal(sent[k], got[k]) for k in sent)
            write_tensors(out / "ddp.safetensors", {f"ddp/{k}": v for k, v in ddp.items()} | {f"ours/{k}": v for k, v in ours.items()})
        (out / f"facts-{team.rank}.json").write_text(json.dumps(facts))
        assert dist.get_world_size() == team.size


if __name__ == "__main__":
    main(Path(sys.argv[1]))
