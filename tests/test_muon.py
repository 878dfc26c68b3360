"""Muon against torch's own, against an exact polar factor, and Adam for what is no matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pixelkiln.core.recipe import OptConfig, TrainConfig
from pixelkiln.core.types import DataInfo, ImageShape, UserError
from pixelkiln.engine.loop import optimizers
from pixelkiln.engine.muon import is_matrix, orthogonal
from pixelkiln.engine.optim import build, pack, unpack
from pixelkiln.methods.flow import Flow, FlowConfig
from pixelkiln.nets.unet import UNetConfig

CONFIG = OptConfig("muon", lr=3e-3, betas=(0.9, 0.99))


def run(opt: torch.optim.Optimizer, weights: list[nn.Parameter], grads: list[list[Tensor]]) -> None:
    """One step for each list of gradients."""
    for step in grads:
        for p, g in zip(weights, step, strict=True):
            p.grad = g.clone()
        opt.step()


def drawn(*shapes: tuple[int, ...], steps: int = 4) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Weights and gradients."""
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in shapes], [[torch.randn(shape) for shape in shapes] for _ in range(steps)]


@pytest.mark.parametrize("shape", [(20, 20), (16, 50), (50, 16), (64, 300)])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    g = torch.randn(3, *shape)
    o = torch.stack(orthogonal(list(g)))
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    inside = torch.einsum("nri,nrc,njc->nij", u, o, vh)  # U^T O V: about the identity
    diagonal = inside.diagonal(dim1=1, dim2=2)
    large = s > 0.05 * s[:, :1]
    assert diagonal[large].min() > 0.6
    assert diagonal.max() < 1.3
    assert (inside - torch.diag_embed(diagonal)).abs().max() < 1e-3


def test_matrices_step_as_those_of_torch_do() -> None:
    weights, grads = drawn((24, 40), (40, 24), (24, 40), (16, 16))
    ours, theirs = ([nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    run(build(OptConfig("muon", lr=3e-3, weight_decay=0.1), ours), ours, grads)
    run(torch.optim.Muon(theirs, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), theirs, grads)
    for a, b, before in zip(ours, theirs, weights, strict=True):
        assert (a - before).norm() > 0.01
        assert (a - b).norm() < 0.02 * (a - before).norm()  # theirs iterates in bfloat16


def test_what_is_no_matrix_steps_as_adam_does() -> None:
    shapes = ((24,), (3, 40), (10, 64), (4, 48, 3, 3), ())
    weights, grads = drawn(*shapes)
    assert not any(is_matrix(w) for w in weights)
    ours, theirs = ([nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    run(build(CONFIG, ours), ours, grads)
    run(torch.optim.Adam(theirs, 3e-3, (0.9, 0.99), 1e-8), theirs, grads)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_a_matrix_whatever_its_layout(layout: torch.memory_format) -> None:
    (w,), grads = drawn((32, 16, 3, 3))
    kernel, flat = nn.Parameter(w.clone(memory_format=layout)), nn.Parameter(w.flatten(1).clone())
    run(build(CONFIG, [kernel]), [kernel], [[g.contiguous(memory_format=layout) for g in step] for step in grads])
    run(build(CONFIG, [flat]), [flat], [[g.flatten(1) for g in step] for step in grads])
    torch.testing.assert_close(kernel.flatten(1), flat)


def test_its_state_is_saved_and_restored_and_weights_without_gradient_stay() -> None:
    weights, grads = drawn((24, 40), (7,), (32, 16, 3, 3))
    whole = [nn.Parameter(w.clone()) for w in weights]
    run(build(CONFIG, whole), whole, grads)
    half = [nn.Parameter(w.clone()) for w in weights]
    first = build(CONFIG, half)
    run(first, half, grads[:2])
    again = build(CONFIG, half)
    unpack({"main": again}, pack({"main": first}))
    run(again, half, grads[2:])
    for a, b in zip(whole, half, strict=True):
        assert torch.equal(a, b)
    idle = [nn.Parameter(w.clone()) for w in weights]
    build(CONFIG, idle).step()
    for a, b in zip(idle, weights, strict=True):
        assert torch.equal(a, b)


def test_matrices_are_adams_where_the_recipe_says_so() -> None:
    weights, grads = drawn((24, 40), (32, 16), (40, 24), (7,))
    names = ["net.table.weight", "net.tables.weight", "net.heads.0.weight", "net.gain"]
    config = OptConfig("muon", lr=3e-3, betas=(0.9, 0.99), adam=("net.table", "net.heads"))
    ours, adam, muon = ([nn.Parameter(w.clone()) for w in weights] for _ in range(3))
    opt = build(config, ours, names)
    run(opt, ours, grads)
    run(torch.optim.Adam(adam, 3e-3, (0.9, 0.99), 1e-8), adam, grads)
    run(build(CONFIG, muon), muon, grads)
    for i, alone in enumerate((adam, muon, adam, adam)):
        torch.testing.assert_close(ours[i], alone[i])
    again = [nn.Parameter(w.clone()) for w in weights]
    unpack({"main": build(config, again, names)}, pack({"main": opt}))
    with pytest.raises(UserError, match=r"'net.tabl' is no part of the nets: they have net.table, net.tables, net.heads, net.gain"):
        build(OptConfig("muon", adam=("net.tabl",)), ours, names)


def test_state_of_another_grouping_is_refused() -> None:
    """A checkpoint from before a weight became Adam's: another order of the weights, or another rule for one."""
    weights, grads = drawn((24, 40), (24, 40), (32, 16))
    names = ["net.a", "net.b", "net.c"]

    def made(*adam: str) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        own = [nn.Parameter(w.clone()) for w in weights]
        return own, build(OptConfig("muon", adam=adam), own, names)

    own, former = made()
    run(former, own, grads)
    kept = pack({"main": former})
    with pytest.raises(ValueError, match=r"main.1.momentum_buffer is \(24, 40\), its weight \(32, 16\)"):
        unpack({"main": made("net.b")[1]}, kept)
    with pytest.raises(ValueError, match=r"main.2 has the state of Muon, and is the other's now"):
        unpack({"main": made("net.c")[1]}, kept)
    own, former = made("net.c")
    run(former, own, grads)
    with pytest.raises(ValueError, match=r"main.2 has the state of Adam, and is the other's now"):
        unpack({"main": made()[1]}, pack({"main": former}))


def test_tables_of_classes_and_words_are_adams_anyway() -> None:
    """Twenty classes and the words of captions: rows that a batch has not seen keep their place, as with Adam, and the hidden matrices are Muon's."""
    info = DataInfo(ImageShape(1, 16, 16), tuple(map(str, range(20))), ("a red circle",))
    method = Flow(info, FlowConfig(net=UNetConfig(width=16, mults=(1,), blocks=1, attention=()), dim=32, captions=4))
    _, opts = optimizers(method, TrainConfig(opts={"main": OptConfig("muon")}))
    name = {id(p): n for n, p in method.named_parameters()}
    adams = {name[id(p)] for group in opts["main"].param_groups if group["adam"] for p in group["params"]}
    assert adams == {"condition.table.weight", "condition.reader.table.weight"}
    assert any(is_matrix(p) for group in opts["main"].param_groups if not group["adam"] for p in group["params"])
