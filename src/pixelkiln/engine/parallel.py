"""Several processes as one: `torchrun --nproc-per-node W -m pixelkiln VERB ...`.

A step's batch is cut into `accumulate` parts, each with random numbers of its own, and process r of W works on parts r, r + W, ...
Gradients, logged terms and buffers are summed over all parts, so that every process takes the same step from the same weights to the
same weights, and W processes compute what one computes with as many parts, up to the order of sums. There is no wrapper around the
networks: gradients are averaged when backward is done, whatever it was (two rows, a penalty's double backward, a rest).

Process 0 alone decides, writes and logs. What it decides reaches the others as JSON, weights as plain bytes; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ..core.types import UserError
from .pulse import Ending, Lost, Pulse

__all__ = ["ALONE", "Apart", "Buffers", "Lost", "Team", "join", "joined"]

T = TypeVar("T")
BUCKET = 2**23  # numbers that are summed at once
MEETING = timedelta(minutes=10)  # time in which all processes must have come
LONGEST = timedelta(hours=6)  # time that processes wait for one that is alive (it may be drawing, fitting, saving)


class Apart(RuntimeError):
    """Processes that should hold the same no longer do; the message names it."""

    status = 1


class Team:
    """The processes that work on one thing: we are `rank` of `size`. A team of one does nothing of what the methods say, at no cost."""

    def __init__(self, rank: int = 0, size: int = 1, pulse: Pulse | None = None) -> None:
        self.rank, self.size, self.pulse = rank, size, pulse

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, writes and logs."""
        return self.rank == 0

    def deal(self, parts: int) -> range:
        """Our share of parts 0..parts-1."""
        return range(self.rank, parts, self.size)

    def agree(self, value: Callable[[], T]) -> T:
        """What `value` returns on process 0, a JSON value; the others do not call it."""
        if self.size == 1:
            return value()
        text = json.dumps(value()).encode() if self.first else b""
        with self._together():
            dist.broadcast(length := torch.tensor([len(text)]), 0)
            data = torch.frombuffer(bytearray(text), dtype=torch.uint8) if self.first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0)
        return json.loads(data.numpy().tobytes())

    def most(self, *numbers: int) -> tuple[int, ...]:
        """The largest of everybody's numbers, one by one."""
        if self.size == 1:
            return numbers
        both = torch.tensor(numbers, dtype=torch.int64)
        with self._together():
            dist.all_reduce(both, dist.ReduceOp.MAX)
        return tuple(both.tolist())

    def wait(self) -> None:
        """Until all are here."""
        self.most(0)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over the processes, in place; all have tensors of the same shapes in the same order."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([t.reshape(-1) for t in bucket])
            with self._together():
                dist.all_reduce(flat)
            for t, total in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                t.copy_(total.view(t.shape))

    def spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Process 0's named tensors, on the CPU; the others' do not matter."""
        if self.size == 1:
            return dict(tensors)
        found = {}
        for name, shape, kind in self.agree(lambda: _layout(tensors)):
            t = tensors[name].detach().cpu().contiguous() if self.first else _empty(shape, kind)
            if t.numel():
                with self._together():
                    dist.broadcast(_bytes(t), 0)
            found[name] = t
        return found

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """All must be the same on all processes, bit for bit, or `Apart` names the first that is not."""
        if self.size == 1:
            return
        prints = [int.from_bytes(hashlib.blake2b(_bytes(t).numpy().data, digest_size=7).digest(), "big") for t in tensors.values()]
        most = self.most(*prints, *(-p for p in prints))
        for name, high, low in zip(tensors, most, most[len(prints) :], strict=False):
            if high != -low:
                raise Apart(f"{name} is no longer the same on all processes (an integer buffer that depends on the part, or an update that is not exact)")

    def in_turn(self, works: Iterable[Callable[[], Mapping[str, Tensor]]]) -> Iterator[dict[str, Tensor]]:
        """On process 0 what each of `works` returns, in their order and on the CPU. Process r does works r, r + W, ..., and the others get nothing."""
        for number, work in enumerate(works):
            owner = number % self.size
            found = dict(work()) if owner == self.rank else {}
            if owner > 0 and self.rank in (0, owner):
                found = self._handed(found, owner)
            if self.first:
                yield found

    def _handed(self, tensors: Mapping[str, Tensor], owner: int) -> dict[str, Tensor]:
        """The named tensors of process `owner`, for process 0; both call it."""
        text = torch.frombuffer(bytearray(json.dumps(_layout(tensors)).encode()), dtype=torch.uint8)
        with self._together():
            pass_on = (lambda t: dist.recv(t, owner)) if self.first else (lambda t: dist.send(t, 0))
            pass_on(length := torch.tensor([len(text)]))
            pass_on(text := torch.empty(int(length), dtype=torch.uint8) if self.first else text)
            found = {name: _empty(shape, kind) for name, shape, kind in json.loads(text.numpy().tobytes())} if self.first else tensors
            found = {name: t.detach().cpu().contiguous() for name, t in found.items()}
            for t in found.values():
                if t.numel():
                    pass_on(_bytes(t))
        return found

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """A collective that fails because somebody has ended is `Lost`, with the reason."""
        assert self.pulse is not None
        try:
            yield
        except RuntimeError as e:
            found = self.pulse.why() or Ending(f"processes cannot reach each other ({str(e).splitlines()[0]})")
            raise Lost(found.line, found.status) from e


ALONE = Team()
_joined = [ALONE]


def joined() -> Team:
    """The team that this process is in; `ALONE` outside of `join`."""
    return _joined[-1]


@contextlib.contextmanager
def join() -> Iterator[Team]:
    """Meet the processes that torchrun has started. An exception inside ends them all, this one included, with one line."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise UserError(f"WORLD_SIZE is {os.environ.get('WORLD_SIZE')} but {missing[0]} is not set: start several processes with torchrun")
    local = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available()
    if cuda and local < torch.cuda.device_count():
        torch.cuda.set_device(local)  # from here on "cuda" means this one
    store, rank, size = next(rendezvous("env://", timeout=MEETING))
    pulse = Pulse(rank, size, os.environ.get("GROUP_RANK", "0"), _own_store())
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=LONGEST)
        _joined.append(Team(rank, size, pulse))
        yield joined()
    except BaseException as e:
        if not isinstance(e, SystemExit) or e.code:
            pulse.end(e)
        raise
    finally:
        _joined[1:] = []
        pulse.stop()
        signal.signal(signal.SIGTERM, before)
    dist.destroy_process_group()


def _own_store() -> Any:
    """Another connection to the launcher's store, for the pulse; torchrun's restarts do not meet in it."""
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*where, is_master=False, wait_for_workers=False, timeout=MEETING)  # type: ignore[attr-defined]
    return dist.PrefixStore(f"pixelkiln/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]


def _terminated(signum: int, _: object) -> None:
    """SIGTERM outside of the training loop: torchrun sends it to the others when one process has ended."""
    raise SystemExit(128 + signum)


def _bytes(t: Tensor) -> Tensor:
    """The bytes of a tensor, (n,) uint8 on the CPU, row by row; of one that lies so already, the very memory."""
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _layout(tensors: Mapping[str, Tensor]) -> list[tuple[str, list[int], str]]:
    """Name, shape and dtype of each, as JSON can hold them."""
    return [(name, list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()]


def _empty(shape: Sequence[int], kind: str) -> Tensor:
    """A tensor of that layout, to be filled."""
    return torch.empty(list(shape), dtype=getattr(torch, kind))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, in groups of one dtype of up to BUCKET numbers."""
    for kind in dict.fromkeys(t.dtype for t in tensors):
        bucket: list[Tensor] = []
        for t in (t for t in tensors if t.dtype == kind):
            if bucket and sum(b.numel() for b in bucket) + t.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(t)
        yield bucket


def _drawn(method: nn.Module) -> set[int]:
    """Ids of the buffers that hold what was drawn."""
    return {id(b) for m in method.modules() for name, b in m.named_buffers(recurse=False) if name in getattr(m, "of_first", ())}


class Buffers:
    """A method's buffers over the parts of a row: each part begins with those that the row began with, and the row ends with their mean.

    So r <- (1 - m) r + m s, of a BatchNorm, say, comes to the mean of s over the parts. Integers must come out of every part alike. Buffers
    that their module names in `of_first` hold what was drawn from a part, of which there is no mean: those of the first part count.
    """

    def __init__(self, method: nn.Module, parts: int) -> None:
        self.method, self.parts = method, parts
        self.before = [b.clone() for b in self._live()]
        self.sums = [torch.zeros_like(b) for b in self.before if b.is_floating_point()]
        self.drawn = _drawn(method) if parts > 1 else set()

    def begin(self) -> None:
        """A part begins."""
        for b, old in zip(self._live(), self.before, strict=True):
            b.copy_(old)

    def keep(self, part: int) -> None:
        """Part number `part` has ended."""
        for total, b in zip(self.sums, [b for b in self._live() if b.is_floating_point()], strict=True):
            total.add_(b, alpha=float(part == 0) if id(b) in self.drawn else 1 / self.parts)

    def end(self) -> None:
        """The row ends; `sums` have been added up over the processes."""
        for b, total in zip([b for b in self._live() if b.is_floating_point()], self.sums, strict=True):
            b.copy_(total)

    def _live(self) -> list[Tensor]:
        return list(self.method.buffers()) if self.parts > 1 else []
