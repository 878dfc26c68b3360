"""The one loop: it executes a method's rows. It knows protocols, never a concrete method, and touches no file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.protocols import Fit, Method, Update
from ..core.recipe import TrainConfig
from ..core.rng import key, seed_all
from ..core.types import Batch, Moment
from .ema import Average
from .optim import build, lr_at, pack, settle, tables, unpack
from .parallel import Buffers
from .where import Where

__all__ = ["Diverged", "Trainer", "only", "optimizers"]


class Diverged(RuntimeError):
    """A loss or a weight is no longer finite; the message names the step and the term."""

    status = 1


@contextlib.contextmanager
def only(method: nn.Module, nets: tuple[str, ...]) -> Iterator[None]:
    """Freeze every net of the method but these: no gradients for its parameters, and its normalisation statistics stand still."""
    with still(*others(method, nets)):
        yield


def others(method: nn.Module, nets: tuple[str, ...]) -> tuple[list[nn.Parameter], list[Any]]:
    """Parameters, and modules with running statistics, of every net of the method but these."""
    frozen = [net for name, net in method.named_children() if name not in nets]
    norms = [m for net in frozen for m in net.modules() if getattr(m, "track_running_stats", False)]
    return [p for net in frozen for p in net.parameters()], norms


@contextlib.contextmanager
def still(parameters: Iterable[nn.Parameter], norms: Iterable[Any]) -> Iterator[None]:
    """Inside, no gradients for the parameters (of those that ask for them), and no running statistics."""
    parameters = [p for p in parameters if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    for m in norms:
        m.track_running_stats = False  # batch statistics are used, running ones are left alone
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
        for m in norms:
            m.track_running_stats = True


def optimizers(method: Method, config: TrainConfig) -> tuple[dict[str, list[nn.Parameter]], dict[str, torch.optim.Optimizer]]:
    """The parameters of each optimiser that the method's updates name, and the optimisers. Errors: ValueError for one that the recipe has not, UserError."""
    rows = [row for row in method.updates() if isinstance(row, Update)]
    owned: dict[str, dict[str, nn.Parameter]] = {row.opt: {} for row in rows}
    for row in rows:
        for net in row.nets:
            owned[row.opt] |= {f"{net}.{n}": p for n, p in getattr(method, net).named_parameters()}
    for name in owned:
        if name not in config.opts:
            raise ValueError(f"the recipe has no optimiser {name!r} for its updates: it has {', '.join(config.opts)}")
    looked_up = {f"{net}.{n}" for row in rows for net in row.nets for n in tables(getattr(method, net))}
    built = {name: build(config.opts[name], params.values(), list(params), looked_up) for name, params in owned.items()}
    return {name: list(params.values()) for name, params in owned.items()}, built


class Trainer:
    """A method, its optimisers and its averaged weights, moving together from step to step.

    draw(d, i, n) is part i of n of batch d of an endless stream; step k draws batches k * fresh .. so that nothing but the step has to
    be saved. Where several processes train, each works on its share of the parts ([parallel](parallel.py)) and takes the same steps.
    """

    def __init__(self, method: Method, config: TrainConfig, draw: Callable[[int, int, int], Batch], seed: int, total: int, where: Where) -> None:
        self.method, self.config, self.draw, self.seed, self.total, self.where = method, config, draw, seed, total, where
        self.first_seed, self.rate, self.norms = seed, 1.0, False
        rows = method.updates()
        self.fits = [row for row in rows if isinstance(row, Fit)]
        self.rows = [row for row in rows if isinstance(row, Update)]
        if self.rows and not self.rows[0].fresh:
            raise ValueError("the first update must draw a fresh batch")
        self.fresh = sum(row.repeat for row in self.rows if row.fresh)
        self.owned, self.opts = optimizers(method, config)
        self.average = Average(method, method.averaged, config.ema) if config.ema and method.averaged else None
        self.others = {row.nets: others(method, row.nets) for row in self.rows}  # walked through once: it takes as long as a small step
        self.modules = list(method.modules())
        self.pending: list[tuple[int, dict[str, Tensor]]] = []  # terms since the last look, not yet read off the device

    def retry(self, rollbacks: int) -> None:
        """From now on other random numbers, and half the rates for each time that training was taken back; 0: as it began."""
        self.seed = key(self.first_seed, "rollback", rollbacks) if rollbacks else self.first_seed
        self.rate = 0.5**rollbacks

    def fit(self, passes: Callable[[], Iterable[Batch]]) -> dict[str, float]:
        """Execute the closed-form rows."""
        seed_all(self.seed, "fit")
        with torch.no_grad():
            return {k: float(v) for row in self.fits for k, v in row.run(passes).items()}

    def step(self, k: int) -> None:
        """Step number k (from 0): every row that is due."""
        moment = Moment(k, self.total, k * self.config.batch, self.config.batch)
        if not all(m.training for m in self.modules):
            self.method.train()
        terms: dict[str, Tensor] = {}
        share, number, parts = None, k * self.fresh, self.config.accumulate
        for row in self.rows:
            for turn in range(row.repeat):
                if row.fresh:
                    share, number = None, number + 1
                if k % row.every:
                    continue
                if share is None:
                    share = [self.draw(number - 1, part, parts) for part in self.where.team.deal(parts)]
                terms |= self._update(row, share, moment, turn)
        seed_all(self.seed, "after", k)
        with torch.no_grad():
            self.method.after_step(moment, terms)
        if self.average is not None:
            self.average.update(self.config.batch, (k + 1) * self.config.batch)
        if k % 100 == 99:
            settle(self.opts)
        self.pending.append((k, terms))

    def _update(self, row: Update, share: Sequence[Batch], moment: Moment, turn: int = 0) -> dict[str, Tensor]:
        """One row: add up the gradients of all parts, ours being `share`; clip, step."""
        config, opt = self.config.opts[row.opt], self.opts[row.opt]
        for group in opt.param_groups:
            group["lr"] = self.rate * lr_at(config, moment)
        prefix = f"{row.name}/" if len(self.rows) > 1 else ""
        found: dict[str, Tensor] = {}
        parts, team = self.config.accumulate, self.where.team
        with still(*self.others[row.nets]):
            buffers = Buffers(self.method, parts)
            for part, batch in zip(team.deal(parts), share, strict=True):
                buffers.begin()
                seed_all(self.seed, "step", moment.step, row.name, turn, part)
                with self.where.autocast():
                    terms = row.loss(batch, moment)
                over(terms["loss"], parts).backward()
                for name, value in terms.items():
                    amount = over(value.detach(), parts)
                    found[prefix + name] = found[prefix + name] + amount if prefix + name in found else amount
                buffers.keep(part)
            if parts > 1:  # a parameter that our parts do not reach may be reached by another process's
                trained = [p for p in self.owned[row.opt] if p.requires_grad]
                for p in trained:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                team.add_up([*(p.grad for p in trained if p.grad is not None), *buffers.sums, *found.values()])
                buffers.end()
            if config.clip is not None:
                found[f"{prefix}grad_norm"] = nn.utils.clip_grad_norm_(self.owned[row.opt], config.clip).detach()
            elif self.norms and (moment.step + 1) % self.config.log_every == 0:
                found[f"watch/{prefix}grad_norm"] = nn.utils.get_total_norm([p.grad for p in self.owned[row.opt] if p.grad is not None]).detach()
            opt.step()
            if config.bound is not None:
                with torch.no_grad():
                    for p in self.owned[row.opt]:
                        p.clamp_(-config.bound, config.bound)
            opt.zero_grad(set_to_none=True)
        return found

    def look(self) -> dict[str, float]:
        """Means of all terms since the last look; a term that is not finite is `Diverged`, named with its step."""
        sums: dict[str, list[float]] = {}
        for k, terms in self.pending:
            for name, value in terms.items():
                sums.setdefault(name, []).append(number := float(value))
                if not math.isfinite(number):
                    raise Diverged(f"{name} is {number} at step {k}")
        self.pending.clear()
        return {name: sum(v) / len(v) for name, v in sums.items()}

    def check(self) -> None:
        """All weights must be finite before they are saved (a loss can be finite a step longer than the weights)."""
        for k, terms in self.pending:
            for name, value in terms.items():
                if not math.isfinite(float(value)):
                    raise Diverged(f"{name} is {float(value)} at step {k}")
        for name, value in self.method.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise Diverged(f"weight {name} is not finite")

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint holds, as named tensors."""
        means = self.average.groups() if self.average else {}
        return {"weights": plain(self.method.state_dict()), **means, "optim": pack(self.opts)}

    def seen(self) -> list[tuple[int, dict[str, float]]]:
        """The terms not yet looked at, as plain numbers (so that a resumed run logs what an unbroken one would)."""
        return [(k, {name: float(v) for name, v in terms.items()}) for k, terms in self.pending]

    def restore(self, read: Callable[[str], Mapping[str, Tensor]], seen: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Take back what `groups` and `seen` gave."""
        self.method.load_state_dict(dict(read("weights")))
        unpack(self.opts, read("optim"))
        if self.average is not None:
            self.average.restore(read)
        self.pending = [(k, {name: torch.tensor(v) for name, v in terms.items()}) for k, terms in seen]

    def sampling(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the method holds the weights that it samples with."""
        return self.average.applied() if self.average else contextlib.nullcontext()


def over(value: Tensor, parts: int) -> Tensor:
    """A part's share of a mean over all parts, fp32: value / parts, and no operation where there is but one."""
    return value.float() if parts == 1 else value.float() / parts


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict's tensors by name."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
