"""On a GPU: every recipe trains there, in both precisions; what it draws is what the processor draws; a resumed run is the unbroken one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pixelkiln.core.types import Condition, Request
from pixelkiln.engine.where import Where
from resuming import apart
from test_catalog import NAMES, request, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Plain fp32, and kernels that give the same every time."""
    matrix, conv, fixed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.set_float32_matmul_precision(matrix)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = conv, fixed


def at(precision: str) -> Where:
    return Where("cuda", precision, False, THREADS)


def moved(order: Request, device: str) -> Request:
    """The order with its tensors on the device."""
    c = order.cond
    there = {name: None if value is None else value.to(device) for name, value in (("label", c.label), ("source", c.source), ("mask", c.mask))}
    return Request(order.seeds, Condition(**there), steps=order.steps)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_trains(name: str, precision: str) -> None:
    t = trainer(name, where=at(precision))
    for k in range(3 if t.rows else 0):
        t.step(k)
    assert all(torch.isfinite(torch.tensor(v)) for v in t.look().values())
    t.check()
    assert {p.device.type for p in t.method.parameters()} <= {"cuda"}


@pytest.mark.parametrize("name", NAMES)
def test_draws_what_the_processor_draws(name: str) -> None:
    """The same weights, the same seeds: equal but for the order of sums."""
    t = trainer(name, where=at("fp32"))
    for k in range(3 if t.rows else 0):
        t.step(k)
    if not t.method.generates:
        pytest.skip("generates nothing")
    order = request(t.method, 4)
    here = t.method.sample(moved(order, "cuda")).cpu()
    there = t.method.to("cpu").sample(order)
    torch.testing.assert_close(here, there, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["ddpm", "edm2", "dit", "vae", "dcgan"])
def test_a_resumed_run_is_the_unbroken_one(name: str) -> None:
    wrong = apart(*(trainer(name, where=at("fp32")) for _ in range(3)), at=2, end=4)
    assert not wrong, wrong[:3]


def test_every_solver_runs_there() -> None:
    from pixelkiln.solvers import SOLVERS

    t = trainer("ddpm", where=at("fp32"))
    for name in SOLVERS:
        x = t.method.sample(Request((0, 1), Condition(label=torch.tensor([0, 1], device="cuda")), steps=4, solver=name))
        assert torch.isfinite(x).all(), name
