"""Quantizers against brute force in float64, the papers' formulas, closed-form gradients and a clustering by SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.cluster.vq import vq
from scipy.special import softmax
from scipy.stats import entropy, ortho_group
from torch import Tensor

from pixelkiln.core.types import UserError
from pixelkiln.engine.loop import only
from pixelkiln.engine.parallel import Buffers
from pixelkiln.layers.codebooks import VQ, SimVQ
from pixelkiln.layers.quantize import Quantizer, Usage, nearest, rotated, rows, straight_through
from pixelkiln.layers.scalar import FSQ, LFQ, mean_entropies
from pixelkiln.layers.stacked import Grouped, Residual
from pixelkiln.layers.whitened import Whitened
from pixelkiln.nets.codebook import CodebookConfig, FSQConfig, LFQConfig, SimVQConfig, VQConfig, codebook

SMALL: list[CodebookConfig] = [VQConfig(16), VQConfig(16, learn="loss"), VQConfig(16, cosine=True, gradient="rotation"), SimVQConfig(16),
                               FSQConfig((4, 3)), LFQConfig(4)]


def images(b: int = 4, d: int = 6, h: int = 3, w: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(b, d, h, w, generator=torch.Generator().manual_seed(seed))


def points(codes: Tensor, n: int, noise: float, seed: int) -> Tensor:
    """n vectors near codes taken at random, as maps (1, D, 1, n)."""
    gen = torch.Generator().manual_seed(seed)
    at = codes[torch.randint(len(codes), (n,), generator=gen)]
    return (at + noise * torch.randn(at.shape, generator=gen)).t()[None, :, None, :]


# what is chosen


def test_the_nearest_code_is_scipys() -> None:
    gen = torch.Generator().manual_seed(0)
    z, codes = torch.randn(500, 7, generator=gen), torch.randn(40, 7, generator=gen)
    assert nearest(z, codes).tolist() == vq(z.double().numpy(), codes.double().numpy())[0].tolist()


def test_autocast_does_not_reach_the_choice() -> None:
    """bf16 has 8 bits: of two codes 1 % apart it cannot tell which is nearer."""
    q = VQ(2, 2).eval()
    q.anchor.copy_(torch.tensor([[100.0, 0.0], [100.4, 0.0]]))
    z = torch.tensor([[100.1, 0.0], [100.3, 0.0]]).t()[None, :, None, :]
    with torch.autocast("cpu", torch.bfloat16):
        assert q(z).indices.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("config", SMALL, ids=str)
@pytest.mark.parametrize(("residual", "groups"), [(1, 1), (3, 1), (1, 2), (2, 2)])
def test_codes_are_what_their_numbers_look_up(config: CodebookConfig, residual: int, groups: int) -> None:
    torch.manual_seed(0)
    q = codebook(config, 6, residual, groups)
    z = images()
    for _ in range(3):
        q(z)
    q.eval()
    found = q(z)
    assert found.z.shape == z.shape
    assert found.indices.shape == (4, residual * groups, 3, 5)
    assert found.indices.dtype == torch.int64
    assert int(found.indices.min()) >= 0 and int(found.indices.max()) < q.vocabulary
    torch.testing.assert_close(found.z, q.lookup(found.indices), atol=1e-5, rtol=1e-5)
    assert torch.equal(q.indices(z), found.indices)
    assert {"usage", "perplexity"} <= {*found.terms}


@pytest.mark.parametrize("config", SMALL, ids=str)
def test_state_moves_in_training_only_and_only_in_the_row_that_owns_it(config: CodebookConfig) -> None:
    torch.manual_seed(0)
    q = codebook(config, 6, residual=2)
    holder = torch.nn.ModuleDict({"quantizer": q, "other": torch.nn.Linear(1, 1)})

    def moves(act: object) -> bool:
        before = {k: v.clone() for k, v in q.state_dict().items()}
        q(images())
        return any(not torch.equal(v, before[k]) for k, v in q.state_dict().items())

    assert moves("training")
    with only(holder, ("other",)):
        assert not moves("another row")
    with only(holder, ("quantizer",)):
        assert moves("its own row")
    before = {k: v.clone() for k, v in q.state_dict().items()}
    q.indices(images(seed=1))
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items()), "asked for numbers in the middle of training"
    q.eval()
    assert not moves("evaluation")


# gradients


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_the_vector() -> None:
    z, q = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64)
    out, g = straight_through(z, q), torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(out, q)
    assert torch.equal(torch.autograd.grad(out, z, g)[0], g)


def test_the_rotation_trick_is_the_rotation_in_the_plane_of_both_vectors() -> None:
    """Its matrix, by numpy from the two directions: |q|/|z| times a rotation that takes z to q and leaves what is orthogonal to both alone."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        z, q = rng.normal(size=4), rng.normal(size=4)
        a, b = z / np.linalg.norm(z), q / np.linalg.norm(q)
        c = b - (a @ b) * a
        c /= np.linalg.norm(c)
        cos, sin = a @ b, np.sqrt(1 - (a @ b) ** 2)
        R = np.eye(4) + (cos - 1) * (np.outer(a, a) + np.outer(c, c)) + sin * (np.outer(c, a) - np.outer(a, c))
        wanted = np.linalg.norm(q) / np.linalg.norm(z) * R
        np.testing.assert_allclose(wanted @ z, q, atol=1e-12)
        found = torch.autograd.functional.jacobian(lambda x, q=torch.from_numpy(q)[None]: rotated(x[None], q)[0], torch.from_numpy(z))
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-10)
        np.testing.assert_allclose(rotated(torch.from_numpy(z)[None], torch.from_numpy(q)[None])[0].numpy(), q, atol=1e-12)


@pytest.mark.parametrize("case", ["opposite", "zero vector", "zero code", "one dimension"])
def test_where_there_is_no_rotation_the_gradient_goes_straight_through(case: str) -> None:
    z = torch.tensor([[1.0, -2.0, 0.5]]) if case != "one dimension" else torch.tensor([[2.0]])
    q = {"opposite": -3 * z, "zero code": 0 * z}.get(case, z.flip(1) * 2)
    z = (0 * z if case == "zero vector" else z).requires_grad_()
    out = rotated(z, q)
    torch.testing.assert_close(out, q)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), z)[0], torch.ones_like(z))


@pytest.mark.parametrize(("residual", "groups"), [(1, 1), (4, 1), (1, 3), (2, 3)])
def test_the_gradient_stays_the_identity_however_many_codes_there_are(residual: int, groups: int) -> None:
    torch.manual_seed(0)
    q, z = codebook(VQConfig(8), 6, residual, groups), images().requires_grad_()
    g = images(seed=5)
    torch.testing.assert_close(torch.autograd.grad(q(z).z, z, g)[0], g)


@pytest.mark.parametrize("learn", ["ema", "loss"])
def test_beta_weighs_the_commitment_of_the_encoder_and_not_the_codes(learn: str) -> None:
    """Gradients by hand: of the encoder 2 beta (z - e) / (n D), of a code 2 sum (e - z) / (n D), the latter without beta."""
    torch.manual_seed(0)
    q, z = VQ(6, 8, learn=learn, commitment=0.25).eval(), images().requires_grad_()  # type: ignore[arg-type]
    found = q(z)
    e = q.lookup(found.indices).detach()
    parameters = [z, *q.parameters()]
    grads = torch.autograd.grad(found.loss, parameters)
    torch.testing.assert_close(grads[0], 2 * 0.25 * (z.detach() - e) / z.numel())
    if learn == "loss":
        flat, index = rows(z.detach()), found.indices.flatten()
        pulled = torch.zeros(8, 6).index_add_(0, index, 2 * (q.codes().detach()[index] - flat) / z.numel())
        torch.testing.assert_close(grads[1], pulled)
    mse = (z.detach() - e).square().mean()
    torch.testing.assert_close(found.loss.detach(), (0.25 if learn == "ema" else 1.25) * mse)


def test_the_loss_does_not_depend_on_the_size_of_the_batch() -> None:
    torch.manual_seed(0)
    q, z = VQ(6, 8).eval(), images()
    torch.testing.assert_close(q(z).loss, q(torch.cat([z] * 5)).loss)


# moving averages


def test_codes_follow_the_papers_averages_from_the_first_step_on() -> None:
    """Appendix A.1 in float64, N_0 = 0 and m_0 = 0, with the assignments made anew in each step."""
    torch.manual_seed(0)
    q = VQ(3, 5, decay=0.9, dead=0.0)
    data = [points(torch.eye(3), 60, 0.8, seed=s) for s in range(30)]
    q(data[0])  # the first batch gives the codes and nothing else
    codes = q.codes().double().numpy()
    N, m = np.zeros(5), np.zeros((5, 3))
    for z in data[1:]:
        flat = rows(z).double().numpy()
        index = vq(flat, codes)[0]
        n = np.bincount(index, minlength=5)
        s = np.stack([flat[index == k].sum(0) for k in range(5)])
        N, m = 0.9 * N + 0.1 * n, 0.9 * m + 0.1 * s
        codes = np.where((N > 0)[:, None], m / np.maximum(N, 1e-300)[:, None], codes)
        assert q(z).indices.flatten().tolist() == index.tolist()
        np.testing.assert_allclose(q.codes().numpy(), codes, atol=1e-5)


def test_codes_that_the_first_batches_leave_out_are_not_thrown_away() -> None:
    """A start of N = 0 and m = e divides what is not taken by nothing: such a code is lost for good, at 1e5 times its length."""
    torch.manual_seed(0)
    q = VQ(4, 64, dead=0.0)
    for s in range(50):
        q(points(torch.eye(4), 20, 0.05, seed=s))
    assert q.codes().norm(dim=1).max() < 2


def test_a_code_that_is_no_longer_taken_stays_where_it_was() -> None:
    """Its averages both vanish; after ten thousand steps they are below what fp32 holds."""
    torch.manual_seed(0)
    q = VQ(2, 2, decay=0.5, dead=0.0)
    both, one = torch.tensor([[5.0, 0.0], [-5.0, 0.0]]).t()[None, :, None, :], torch.tensor([[5.0, 0.1]]).t()[None, :, None, :]
    q.anchor.copy_(rows(both))
    q.begun.fill_(1)
    q(both)
    for _ in range(400):
        q(one)
    torch.testing.assert_close(q.codes(), torch.tensor([[5.0, 0.1], [-5.0, 0.0]]))
    assert float(q.size[1]) < 1e-38


@pytest.mark.parametrize("learn", ["ema", "loss"])
def test_codes_begin_as_vectors_of_the_first_batch(learn: str) -> None:
    torch.manual_seed(3)
    q, z = VQ(6, 32, learn=learn), 50 + images()  # type: ignore[arg-type]
    found = q(z)
    assert (q.codes()[:, None] - rows(z)[None]).norm(dim=2).min(1).values.max() < 1e-4
    assert float(found.terms["quantization"]) < 1.5, "of 2 for two independent vectors: the codes are used in the very first step"


@pytest.mark.parametrize("learn", ["ema", "loss"])
def test_dead_codes_begin_anew_as_vectors_of_the_batch_and_live_ones_do_not(learn: str) -> None:
    torch.manual_seed(0)
    q = VQ(2, 8, learn=learn)  # type: ignore[arg-type]
    near, far = points(torch.tensor([[1.0, 0.0]]), 200, 0.1, 0), torch.tensor([1000.0, 1000.0])
    q(near)
    q.anchor[3] = far
    for name in ("size", "total", "age"):
        if hasattr(q, name):
            getattr(q, name)[3] = 0
    young = []
    for s in range(60):
        q(points(torch.tensor([[1.0, 0.0]]), 200, 0.1, s))
        young.append(bool((q.codes()[3] - far).norm() < 1))
    assert young[15], "it is given time"
    assert not young[-1]
    assert q.codes()[3].sub(torch.tensor([1.0, 0.0])).norm() < 1
    if learn == "ema":  # averages are reset with the code: nothing of the old one is left in them
        torch.testing.assert_close(q.total[3] / q.size[3], q.codes()[3].detach())


def test_parts_of_a_batch_move_the_codebook_as_the_whole_batch() -> None:
    """Two parts, averaged as the loop averages buffers, give the averages of the whole; what is drawn comes from the first part."""
    z = [points(torch.eye(3), 64, 0.5, seed=s) for s in range(40)]

    def trained(parts: int) -> tuple[VQ, list[Tensor]]:
        torch.manual_seed(0)
        q, seen = VQ(3, 8), []
        for x in z:
            buffers = Buffers(q, parts)
            for part, piece in enumerate(x.chunk(parts, dim=3)):
                buffers.begin()
                torch.manual_seed(part)
                q(piece)
                buffers.keep(part)
            if parts > 1:
                buffers.end()
            seen.append(q.codes().clone())
        return q, seen

    many, seen = trained(4)
    first = rows(z[0].chunk(4, dim=3)[0])
    assert all((first == code).all(1).any() for code in seen[0]), "codes begin as vectors, not as means of vectors"
    one = VQ(3, 8)
    one.load_state_dict({k: v for k, v in many.state_dict().items()})
    two = VQ(3, 8)
    two.load_state_dict(many.state_dict())
    x = points(torch.eye(3), 64, 0.5, seed=99)
    one(x)
    buffers = Buffers(two, 4)
    for part, piece in enumerate(x.chunk(4, dim=3)):
        buffers.begin()
        two(piece)
        buffers.keep(part)
    buffers.end()
    for name in ("size", "total", "age", "begun"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), msg=name)


# usage


def test_usage_and_perplexity_of_shares() -> None:
    usage = Usage(8)
    for _ in range(5):
        usage.update(torch.tensor([[0, 0, 1], [1, 2, 2]]))
    terms = usage.terms()
    assert float(terms["usage"]) == 3 / 8
    assert float(terms["perplexity"]) == pytest.approx(3)
    usage.update(torch.tensor([0, 0, 0, 5]))
    p = usage.share.double().numpy() / float(usage.weight)
    assert float(usage.terms()["perplexity"]) == pytest.approx(math.exp(entropy(p)), rel=1e-5)


TOY = ["vq", "vq loss", "cosine", "rotation", "simvq", "fsq", "lfq"]


@pytest.mark.parametrize("name", TOY)
def test_nearly_all_of_1024_codes_are_used(name: str) -> None:
    """An encoder and a decoder of one linear map each, vectors around 400 centers of unequal sizes.

    LFQ's 10 hyperplanes cut 8 dimensions into 1,013 parts at most, many of them slivers: its vectors have 16.
    """
    configs: dict[str, CodebookConfig] = {
        "vq": VQConfig(1024), "vq loss": VQConfig(1024, learn="loss"), "cosine": VQConfig(1024, cosine=True),
        "rotation": VQConfig(1024, gradient="rotation"), "simvq": SimVQConfig(1024), "fsq": FSQConfig((4, 4, 4, 4, 4)), "lfq": LFQConfig(10, entropy=0.5)}
    torch.manual_seed(0)
    d = 16 if name == "lfq" else 8
    q = codebook(configs[name], d)
    encoder, decoder = torch.nn.Conv2d(d, d, 1), torch.nn.Conv2d(d, d, 1)
    opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *q.parameters()], 1e-2)
    centers = torch.randn(400, d)
    for step in range(150):
        x = points(centers, 2048, 0.3, seed=step)
        found = q(encoder(x))
        rec = (decoder(found.z) - x).square().mean()
        loss = rec + found.loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert float(found.terms["usage"]) > 0.95, found.terms
    assert float(rec.detach()) < 0.6, "of a variance of 1.09"


def test_without_revival_and_data_codes_collapse() -> None:
    """The same with codes that begin far from the data and are left alone: the reason for both."""
    torch.manual_seed(0)
    q = VQ(8, 1024, dead=0.0)
    q.anchor.mul_(10)
    q.begun.fill_(1)
    for step in range(50):
        q(points(torch.eye(8), 4096, 0.3, seed=step))
    assert float(q.usage.terms()["usage"]) < 0.1


# codes without a codebook


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3,), (2, 2, 2), (7, 4)])
def test_the_implied_codebook_of_fsq_is_the_grid(levels: tuple[int, ...]) -> None:
    q = FSQ(len(levels), levels)
    index = torch.arange(math.prod(levels))
    values = q.values(index)
    wanted = {tuple(float(v) for v in p) for p in itertools.product(*(range(-(n // 2), (n + 1) // 2) for n in levels))}
    assert {tuple(v.tolist()) for v in values} == wanted
    assert torch.equal(q.numbers(values), index)
    z = 20 * torch.rand(20_000, len(levels), generator=torch.Generator().manual_seed(0)) - 10
    reached = q.bounded(z).round()
    assert {tuple(v.tolist()) for v in reached} <= wanted
    for i, n in enumerate(levels):
        assert len(reached[:, i].unique()) == n, "every value is reached, and the outermost ones too"
    middle = q.bounded(torch.zeros(1, len(levels)))[0]
    assert middle.tolist() == [-0.5 if n % 2 == 0 else 0.0 for n in levels], "the middle of all values"


def test_fsq_rounds_as_the_formula_and_passes_the_gradient_of_tanh() -> None:
    q = FSQ(2, (8, 5)).eval()
    for linear in (q.enter, q.leave):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    z = images(d=2).requires_grad_()
    found = q(z)
    flat = rows(z.detach()).double().numpy()
    half, offset = np.array([7, 4]) * 1.001 / 2, np.array([0.5, 0])
    bounded = np.tanh(1.2 * flat) * half - offset
    wanted = np.round(bounded) / [4, 2]
    np.testing.assert_allclose(rows(found.z.detach()).numpy(), wanted, atol=1e-6)
    assert found.indices.flatten().tolist() == (np.round(bounded) + [4, 2]).dot([1, 8]).astype(int).tolist()
    grad = torch.autograd.grad(found.z.sum(), z)[0]
    slope = 1.2 * half * (1 - np.tanh(1.2 * flat) ** 2) / [4, 2]
    np.testing.assert_allclose(rows(grad).numpy(), slope, rtol=1e-4, atol=1e-6)
    assert float(found.loss) == 0


@pytest.mark.parametrize("d", [1, 3, 6])
@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_entropies_of_lfq_are_those_of_the_softmax_over_all_codes(d: int, tau: float) -> None:
    z = np.random.default_rng(0).normal(size=(50, d))
    codes = np.array(list(itertools.product([-1, 1], repeat=d)))
    p = softmax(-((z[:, None] - codes) ** 2).sum(2) / tau, axis=1)  # (n, 2^d)
    each, joint = mean_entropies(torch.from_numpy(z), tau)
    assert float(each) == pytest.approx(entropy(p, axis=1).mean(), rel=1e-9)
    assert float(joint) == pytest.approx(entropy(p.mean(0)), rel=1e-9)


def test_lfq_takes_signs_and_its_numbers_are_their_bits() -> None:
    q = LFQ(3, 3, entropy=0.1, gamma=2.0, tau=0.7, commitment=0.25).eval()
    for linear in (q.enter, q.leave):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    z = images(d=3)
    found, flat = q(z), rows(z)
    assert torch.equal(rows(found.z), torch.where(flat > 0, 1.0, -1.0))
    assert found.indices.flatten().tolist() == ((flat > 0).int() * torch.tensor([1, 2, 4])).sum(1).tolist()
    each, joint = mean_entropies(flat, 0.7)
    wanted = 0.1 * (each - 2 * joint) + 0.25 * (flat - flat.sign()).square().mean()
    torch.testing.assert_close(found.loss, wanted)


def test_entropies_of_lfq_have_finite_gradients_far_from_zero() -> None:
    z = torch.tensor([[60.0, -60.0], [0.0, 1e3]], requires_grad=True)
    each, joint = mean_entropies(z, 0.1)
    assert all(g.isfinite().all() for g in torch.autograd.grad(each - joint, z))


def test_simvq_moves_all_codes_at_once_and_keeps_its_coordinates() -> None:
    torch.manual_seed(0)
    q, z = SimVQ(6, 32), images()
    before = q.frozen.clone()
    opt = torch.optim.SGD(q.parameters(), 1.0)
    loss = q(z).loss
    old = q.codes().detach().clone()
    loss.backward()
    opt.step()
    assert torch.equal(q.frozen, before)
    assert ((q.codes() - old).norm(dim=1) > 0).all()
    c = np.c_[before.double().numpy(), np.ones(32)]
    W = np.linalg.lstsq(c, q.codes().detach().double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(W[:-1].T, (q.start + q.weight).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(W[-1], (q.center + q.bias).detach().numpy(), atol=1e-5)


def test_simvq_starts_where_the_vectors_are_and_once_only() -> None:
    """Of small vectors in a corner of the space, in few of its dimensions, codes of the identity use a handful."""
    torch.manual_seed(0)
    q = SimVQ(16, 256)
    z = 0.05 * torch.randn(8, 3, 16, 16)
    z = torch.einsum("dk,bkhw->bdhw", torch.randn(16, 3), z) + torch.randn(16, 1, 1)
    q(z)
    flat, root = rows(z), q.start
    np.testing.assert_allclose((root @ root.T).numpy(), np.cov(flat.T.numpy(), bias=True), atol=1e-6)
    np.testing.assert_allclose(q.center.numpy(), flat.mean(0).numpy(), atol=1e-5)
    kept = q.start.clone(), q.center.clone()
    assert len(nearest(flat, q.codes().detach()).unique()) > 200
    assert len(nearest(flat, q.frozen).unique()) < 20
    q(3 * z)
    assert torch.equal(q.start, kept[0]) and torch.equal(q.center, kept[1])


def corner(dim: int, rank: int, seed: int = 0) -> Tensor:
    """Small vectors (8, dim, 16, 16) far from 0, in a few of the directions."""
    gen = torch.Generator().manual_seed(seed)
    axes, middle = torch.randn(dim, rank, generator=gen), torch.randn(dim, 1, 1, generator=gen)
    return torch.einsum("dk,bkhw->bdhw", axes, 0.05 * torch.randn(8, rank, 16, 16, generator=gen)) + middle


@pytest.mark.parametrize("config", [FSQConfig((4, 4, 4, 4)), FSQConfig((8, 5, 5)), LFQConfig(6)], ids=str)
def test_codes_without_a_codebook_are_taken_wherever_the_vectors_are(config: FSQConfig | LFQConfig) -> None:
    """Nearly all from the first batch on, and by the averages in evaluation; without whitening, a handful."""
    torch.manual_seed(0)
    q, z = codebook(config, 16), corner(16, 8)
    assert isinstance(q, FSQ | LFQ)
    first = q(z).indices
    assert len(first.unique()) > 0.9 * q.vocabulary
    q.eval()
    assert (q(z).indices == first).float().mean() > 0.98
    q.even = torch.nn.Identity()  # type: ignore[assignment]
    assert len(q(z).indices.unique()) < 0.3 * q.vocabulary


def test_whitened_is_cholesky_of_the_covariance_and_its_averages_have_no_bias() -> None:
    gen = torch.Generator().manual_seed(0)
    white, mix = Whitened(3), torch.randn(3, 3, generator=gen)
    y = torch.randn(500, 3, generator=gen)
    assert torch.equal(Whitened(3).eval()(y), torch.linalg.solve_triangular(1.00001**0.5 * torch.eye(3), y.T, upper=False).T), "before the first step"
    for step in range(3):
        y = torch.randn(500, 3, generator=gen) @ mix.T + 5
        flat = y.double().numpy()
        wanted = np.linalg.solve(np.linalg.cholesky(np.cov(flat.T, bias=True)), (flat - flat.mean(0)).T).T
        np.testing.assert_allclose(white(y).numpy(), wanted, atol=3e-3, err_msg=str(step))
    white.eval()
    big = torch.randn(100_000, 3, generator=gen) @ mix.T + 5
    np.testing.assert_allclose(np.cov(white(big).numpy().T), np.eye(3), atol=0.15)
    white.train().track_running_stats = False
    kept = white.cov.clone()
    assert torch.equal(white(y), white.eval()(y)) and torch.equal(white.cov, kept), "held still"


def test_whitened_survives_vectors_that_are_alike_or_far_away() -> None:
    """Zero covariance, one of rank 1, and a mean ten thousand deviations away: finite values and gradients, in evaluation too."""
    gen = torch.Generator().manual_seed(0)
    for y in (torch.ones(50, 4), torch.randn(50, 1, generator=gen).expand(50, 4), 100 + 0.01 * torch.randn(50, 4, generator=gen)):
        white, y = Whitened(4), y.clone().requires_grad_()
        out = white(y)
        grad, = torch.autograd.grad(out.square().sum() + out.sum(), y)
        assert out.isfinite().all() and grad.isfinite().all()
        assert white.eval()(y).isfinite().all()


def test_whitened_against_differences() -> None:
    """Gradients go through mean and covariance."""
    white, y = Whitened(3).double(), torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(white, (y,))
    scaled, = torch.autograd.grad((white(y)[:, 0] * torch.arange(7)).sum(), y)
    assert abs(float((scaled * y.detach()).sum())) < 1e-4, "a larger y changes nothing"


# several codes a position


def test_residual_levels_are_the_greedy_sum_of_codes() -> None:
    torch.manual_seed(0)
    parts: list[Quantizer] = [VQ(4, 8) for _ in range(3)]
    q, z = Residual(parts).eval(), images(d=4)
    found = q(z)
    rest = rows(z).double().numpy()
    for level, part in enumerate(parts):
        codes = part.anchor.double().numpy()  # type: ignore[union-attr, operator]
        index = vq(rest, codes)[0]
        assert found.indices[:, level].flatten().tolist() == index.tolist()
        rest = rest - codes[index]
    np.testing.assert_allclose(rows(found.z).numpy(), rows(z).numpy() - rest, atol=1e-5)


def test_residual_commitment_is_the_mean_over_partial_sums() -> None:
    """Lee et al. 2022, eq. 7: |z - sg(q_1 + ... + q_l)|^2 for all l, with its gradient from every level."""
    torch.manual_seed(0)
    q, z = Residual([VQ(4, 8, commitment=1.0) for _ in range(3)]).eval(), images(d=4).requires_grad_()
    found = q(z)
    sums = [sum(part.lookup(found.indices[:, i : i + 1]) for i, part in enumerate(list(q.parts)[: n + 1])) for n in range(3)]  # type: ignore[operator]
    wanted = torch.stack([(z - s.detach()).square().mean() for s in sums]).mean()  # type: ignore[union-attr]
    torch.testing.assert_close(found.loss, wanted)
    torch.testing.assert_close(torch.autograd.grad(found.loss, z)[0], torch.autograd.grad(wanted, z)[0])


def test_groups_quantize_their_own_channels() -> None:
    torch.manual_seed(0)
    q, z = Grouped([VQ(2, 8), VQ(2, 8)]).eval(), images(d=4)
    whole = q(z)
    for g, part in enumerate(q.parts):
        alone = part(z[:, 2 * g : 2 * g + 2])
        assert torch.equal(alone.z, whole.z[:, 2 * g : 2 * g + 2])
        assert torch.equal(alone.indices[:, 0], whole.indices[:, g])


def test_more_levels_leave_less() -> None:
    torch.manual_seed(0)
    left = []
    for residual in (1, 2, 4):
        q = codebook(VQConfig(16), 6, residual)
        for s in range(60):
            z = images(32, seed=s)
            found = q(z)
        left.append(float((found.z - z).square().mean()))
    assert left[0] > 1.3 * left[1] > 1.6 * left[2]


@pytest.mark.parametrize(("config", "residual", "groups"), [
    (VQConfig(1), 1, 1), (VQConfig(decay=1.0), 1, 1), (FSQConfig(()), 1, 1), (FSQConfig((8, 1)), 1, 1), (LFQConfig(0), 1, 1),
    (VQConfig(), 0, 1), (VQConfig(), 1, 4)])
def test_what_cannot_be_is_refused(config: CodebookConfig, residual: int, groups: int) -> None:
    with pytest.raises(UserError, match="--model"):
        codebook(config, 6, residual, groups)


def test_a_rotated_space_changes_nothing() -> None:
    """Distances do not know the axes: the same vectors turned give the same numbers (a check of the expanded square)."""
    Q = torch.from_numpy(ortho_group.rvs(6, random_state=0)).float()
    gen = torch.Generator().manual_seed(0)
    z, codes = torch.randn(200, 6, generator=gen), torch.randn(30, 6, generator=gen)
    assert torch.equal(nearest(z, codes), nearest(z @ Q, codes @ Q))
