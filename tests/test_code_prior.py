"""The transformer over codes: what it may see, that it is a distribution, that the cache changes nothing, and how codes are drawn."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from commands import TINY, pixelkiln
from pixelkiln.core.catalog import builtin
from pixelkiln.core.protocols import Method, Tokenizer
from pixelkiln.core.runs import Run
from pixelkiln.core.types import Batch, Condition, DataInfo, ImageShape, Request, UserError
from pixelkiln.data import Feed, open_source
from pixelkiln.engine.build import make
from pixelkiln.engine.loop import Trainer
from pixelkiln.engine.where import Where
from pixelkiln.methods.code_prior import CodePrior
from pixelkiln.nets.causal import Cache, Causal, CausalConfig
from pixelkiln.solvers.categorical import guided_logits, kept, pick, probabilities
from resuming import apart

INFO = DataInfo(ImageShape(1, 8, 8), ("a", "b", "c"))
WHERE = Where("cpu", "fp32", False, torch.get_num_threads())


def net(vocabulary: int = 7, lengths: tuple[int, ...] = (4, 6), depth: int = 3) -> Causal:
    """A transformer whose weights are large enough for everything to matter."""
    torch.manual_seed(0)
    made = Causal(vocabulary, lengths, CausalConfig(width=16, depth=depth, heads=2, dropout=0.0)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made


def prior(codec: str = "vqvae") -> CodePrior:
    """An untrained prior on an untrained codec, with weights that matter."""
    parent = make(builtin()[codec]("tiny").last, INFO, {}, 1)
    made = make(builtin()["code-prior"]("tiny").last, INFO, {"codec": parent}, 0).eval()
    assert isinstance(made, CodePrior)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


def test_a_place_sees_what_stands_before_it_and_nothing_else() -> None:
    made, vec = net(), torch.randn(1, 16)
    tokens = torch.randint(7, (1, 10))
    before = made(tokens, vec)
    for i in range(10):
        changed = tokens.clone()
        changed[0, i] = (tokens[0, i] + 1) % 7
        moved = (made(changed, vec) - before).abs().amax(2)[0] > 1e-6
        assert moved.tolist() == [False] * (i + 1) + [True] * (9 - i)
    assert ((made(tokens, vec + 1) - before).abs().amax(2) > 1e-6).all(), "the condition reaches every place"


def test_the_likelihood_is_a_distribution_over_all_sequences() -> None:
    """exp(log p) of all 3^4 sequences of two codebooks sums to 1: an off-by-one, or a look ahead, would break it."""
    made = net(3, (1, 3)).double()
    tokens = torch.tensor(list(itertools.product(range(3), repeat=4)))
    logits = made(tokens, torch.randn(1, 16, dtype=torch.float64).expand(81, -1)).double()
    log_p = logits.log_softmax(2).gather(2, tokens[:, :, None])[..., 0].sum(1)
    assert float(log_p.detach().exp().sum()) == pytest.approx(1, abs=1e-6)
    assert log_p.detach().std() > 0.1


@pytest.mark.parametrize("lengths", [(10,), (4, 6), (1, 1, 1)])
def test_the_cached_logits_are_those_of_the_whole_sequence(lengths: tuple[int, ...]) -> None:
    made = net(7, lengths)
    n = sum(lengths)
    tokens, vec = torch.randint(7, (5, n)), torch.randn(5, 16)
    whole, cache = made(tokens, vec), Cache(3, n)
    for i in range(n):
        torch.testing.assert_close(made.step(tokens[:, i - 1] if i else None, vec, cache), whole[:, i], atol=2e-5, rtol=1e-5)


def test_the_cached_logits_are_those_of_the_whole_sequence_in_bf16() -> None:
    """Within what bf16 leaves of them; the weights in the cache are bf16 once, and the sum of the blocks stays fp32."""
    made = net()
    tokens, vec, cache = torch.randint(7, (5, 10)), torch.randn(5, 16), Cache(3, 10)
    with torch.no_grad():
        exact = made(tokens, vec)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            whole = made(tokens, vec)
            steps = torch.stack([made.step(tokens[:, i - 1] if i else None, vec, cache) for i in range(10)], dim=1)
    assert cache.blocks[0].qkv.dtype == torch.bfloat16
    assert steps.dtype == torch.float32
    assert (steps - exact).square().mean() < 2 * (whole - exact).square().mean()


def test_a_cache_is_of_the_weights_at_its_first_step_and_drops_nothing() -> None:
    """A new cache sees new weights; in training mode a step is what it is in evaluation."""
    made, vec = Causal(7, (4,), CausalConfig(width=16, depth=2, heads=2, dropout=0.5)), torch.randn(3, 16)
    with torch.no_grad():
        first = made.step(None, vec, Cache(2, 4))
        torch.testing.assert_close(first, made.step(None, vec, Cache(2, 4)))
        made.gain.mul_(2)
        changed = made.step(None, vec, Cache(2, 4))
        torch.testing.assert_close(changed, made.eval()(torch.zeros(3, 1, dtype=torch.long), vec)[:, 0])
    assert (changed - first).abs().max() > 1e-3


@pytest.mark.parametrize("codec", ["vqvae", "vqvae2"])
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_samples_are_those_of_a_sampler_without_cache(codec: str, weight: float) -> None:
    """Both halves of guidance by themselves, the whole sequence anew for every code."""
    made = prior(codec)
    n, label = made.net.total, torch.tensor([0, 1, 2, 0])
    u = torch.rand(4, n, dtype=torch.float64)
    request = Request((0,) * 4, Condition(label=label), guidance=weight, temperature=0.8, top_k=9, top_p=0.95)
    with torch.no_grad():
        found = made.write(u, request)
        tokens = torch.zeros(4, n, dtype=torch.long)
        for i in range(n):
            c, v = (made.net(tokens, made.condition(cond, 4).vec)[:, i] for cond in (Condition(label=label), Condition()))
            logits = v + weight * (c - v)
            tokens[:, i] = pick(probabilities(logits, 0.8, 9, 0.95), u[:, i])
    assert torch.equal(found, tokens)
    assert len(found.unique()) > 3


def test_the_cache_saves_more_than_seven_eighths_of_the_work_at_256_codes() -> None:
    made = Causal(64, (256,), CausalConfig(width=64, depth=2, heads=2)).eval()
    vec = torch.randn(1, 64)

    def work(cached: bool) -> int:
        counter, cache, tokens = FlopCounterMode(display=False), Cache(2, 256), torch.zeros(1, 256, dtype=torch.long)
        with torch.no_grad(), counter:
            for i in range(256):
                if cached:
                    made.step(tokens[:, i - 1] if i else None, vec, cache)
                else:
                    made(tokens[:, : i + 1], vec)
        return counter.get_total_flops()

    assert work(False) > 8 * work(True)


def test_a_shorter_sequence_gives_the_same_logits() -> None:
    made, vec = net(), torch.randn(2, 16)
    tokens = torch.randint(7, (2, 10))
    whole = made(tokens, vec)
    for n in (1, 4, 5, 9):
        torch.testing.assert_close(made(tokens[:, :n], vec), whole[:, :n], atol=1e-5, rtol=1e-5)


# drawing


def brute(logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The definition, one row at a time, code by code from the likeliest."""
    p = np.exp(logits / temperature - (logits / temperature).max())
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))[: top_k or len(p)]
    total, chosen, mass = sum(p[i] for i in order), [], 0.0
    for i in order:
        if top_p is not None and mass >= top_p:
            break
        chosen.append(i)
        mass += p[i] / total
    found = np.zeros(len(p))
    found[chosen] = p[chosen] / p[chosen].sum()
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 50])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.6, 1.0])
def test_probabilities_are_those_of_the_definition(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = np.random.default_rng(0).normal(size=(6, 11)) * 2
    logits[0] = 0  # all alike
    logits[1, 3:] = -1e30
    found = probabilities(torch.from_numpy(logits), temperature, top_k, top_p)
    np.testing.assert_allclose(found.numpy(), [brute(row, temperature, top_k, top_p) for row in logits], atol=1e-12)


def test_temperature_zero_is_the_likeliest_code_and_the_limit_of_small_ones() -> None:
    logits = torch.randn(5, 9)
    assert torch.equal(probabilities(logits, 0.0).argmax(1), logits.argmax(1))
    torch.testing.assert_close(probabilities(logits, 1e-4), probabilities(logits, 0.0))


def test_top_p_keeps_the_code_that_crosses_the_threshold() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert kept(logits, None, 0.6).tolist() == [[True, True, False]]
    assert kept(logits, None, 0.5).tolist() == [[True, False, False]]


def test_codes_come_as_often_as_their_probabilities_say() -> None:
    p = torch.tensor([0.0, 0.1, 0.5, 0.0, 0.4, 0.0], dtype=torch.float64)
    n = 20_000
    counts = np.bincount(pick(p.expand(n, -1), torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).numpy(), minlength=6)
    assert counts[[0, 3, 5]].sum() == 0
    assert chisquare(counts[[1, 2, 4]], n * np.array([0.1, 0.5, 0.4])).pvalue > 1e-3
    edges = torch.tensor([0.0, 0.1, 0.6, 1 - 2**-53], dtype=torch.float64)
    assert pick(p.expand(4, -1), edges).tolist() == [1, 2, 4, 4]


def test_guidance_of_log_probabilities_is_a_power_of_the_likelihood_ratio() -> None:
    p, q = torch.rand(2, 5, dtype=torch.float64).softmax(1), torch.rand(2, 5, dtype=torch.float64).softmax(1)
    wanted = q * (p / q) ** 2.5
    torch.testing.assert_close(guided_logits(p.log(), q.log(), 2.5).softmax(1), wanted / wanted.sum(1, keepdim=True))
    torch.testing.assert_close(guided_logits(p.log() + 3, q.log() - 7, 1.0).softmax(1), p)


# the method


def test_the_score_is_the_codes_and_where_there_is_one_the_decoders() -> None:
    x = (torch.randint(256, (6, 1, 8, 8)) / 127.5) - 1
    made = prior()
    codec = made.codec[0]
    tokens = codec.tokens(x)
    score = made.log_prob(x, 1, torch.Generator())
    null = made.condition(Condition(label=torch.full((6,), -1)), 6).vec
    log_p = made.net(tokens, null).log_softmax(2).gather(2, tokens[:, :, None])[..., 0].sum(1)
    painted = codec.log_likelihood(x, tokens)
    assert painted is not None
    torch.testing.assert_close(score.nats, log_p + painted)
    assert (score.kind, score.per_dim) == ("bound", 0.0)
    plain = prior("vqgan")
    assert plain.log_prob(x, 1, torch.Generator()).per_dim is None, "no bits per dimension without a distribution over images"


def test_the_knobs_change_samples_and_bad_ones_are_refused() -> None:
    made = prior()
    label = Condition(label=torch.arange(32) % 3)
    usual = Request(tuple(range(32)), label)
    drawn: list[Tensor] = [made.sample(usual)]
    for knobs in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}, {"guidance": 4.0}):
        drawn.append(made.sample(replace(usual, **knobs)))  # type: ignore[arg-type]
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])
    torch.testing.assert_close(drawn[1], drawn[2])
    torch.testing.assert_close(drawn[1], drawn[3])
    for name, value in (("temperature", -1.0), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5)):
        with pytest.raises(UserError, match=name):
            made.sample(replace(usual, **{name: value}))


class Levels(Method, Tokenizer):
    """A codec whose codes are the levels of the pixels, 16 of them."""

    generates = False

    def __init__(self, info: DataInfo) -> None:
        super().__init__(info)
        self.vocabulary, self.grids = 16, ((info.shape.height, info.shape.width),)

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def tokens(self, x: Tensor) -> Tensor:
        return ((x.flatten(1) + 1) * 7.5).round().long()

    def from_tokens(self, tokens: Tensor) -> Tensor:
        return tokens.view(len(tokens), *self.shape) / 7.5 - 1

    def draw(self, request: Request) -> Tensor:
        raise AssertionError


def chains(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Codes (n, 25) and classes y (n,): the next code is the last one plus 1 + 2 y, around 16, but for 15 %, which are any code."""
    gen = torch.Generator().manual_seed(seed)
    y, codes = torch.randint(3, (n,), generator=gen), torch.randint(16, (n, 25), generator=gen)
    free = torch.rand(n, 25, generator=gen) < 0.15
    for i in range(1, 25):
        codes[:, i] = torch.where(free[:, i], codes[:, i], (codes[:, i - 1] + 1 + 2 * y) % 16)
    return codes, y


def test_a_chain_is_learned_up_to_its_entropy_and_written_as_its_class_has_it() -> None:
    info = DataInfo(ImageShape(1, 5, 5), INFO.classes)
    codec, stage, steps = Levels(info), builtin()["code-prior"]("tiny").last, 200
    made = make(stage, info, {"codec": codec}, 0)
    assert isinstance(made, CodePrior)

    def draw(d: int, i: int, n: int) -> Batch:
        codes, y = chains(32, d)
        return Batch(codec.from_tokens(codes), Condition(label=y))

    trainer = Trainer(made, stage.train, draw, 0, steps, WHERE)
    for k in range(steps):
        trainer.step(k)
    made.eval()
    q = 0.15 / 16
    entropy = (np.log(16) - 24 * ((0.85 + q) * np.log(0.85 + q) + 15 * q * np.log(q))) / 25  # nats a code: the first, then 24 others
    codes, y = chains(500, -1)
    with torch.no_grad():
        nats = -made.log_codes(codes, Condition(label=y)).mean() / 25
    assert abs(nats - entropy) < 0.03, (nats, entropy)
    y = torch.arange(300) % 3
    written = codec.tokens(made.sample(Request(seeds=tuple(range(300)), cond=Condition(label=y))))
    follows = (written[:, 1:] == (written[:, :-1] + 1 + 2 * y[:, None]) % 16).float().mean()
    assert abs(follows - 0.85 - q) < 0.02, follows


def test_codes_that_are_kept_are_the_codecs_and_each_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prior()
    codec, seen = plain.codec[0], []
    made = CodePrior(INFO, replace(plain.config, cache=True), {"codec": codec})  # type: ignore[dict-item]
    images = torch.rand(7, 1, 8, 8) * 2 - 1
    expected = codec.tokens(images)
    tokens = codec.tokens
    monkeypatch.setattr(codec, "tokens", lambda x: seen.append(len(x)) or tokens(x))
    for rows in ([2, 0, 2], [0, 6, 1], [5, 6, 2], [4, 3, 1], [0, 1, 2, 3, 4, 5, 6]):
        index = torch.tensor(rows)
        assert torch.equal(made.codes_of(Batch(images[index], index=index)), expected[index])
        assert torch.equal(plain.codes_of(Batch(images[index], index=index)), expected[index])
    assert seen.count(1) == 8, "seven images, one of them twice in the batch that it came with first"
    made.codes_of(Batch(images))
    assert seen[-1] == 7, "images of which nobody says which they are"


def test_training_on_kept_codes_goes_on_bit_for_bit() -> None:
    data, stage = open_source("digits", builtin()["vqvae"]("tiny").last.data, "train"), builtin()["code-prior"]("tiny").last
    stage = replace(stage, model=replace(stage.model, cache=True))
    codec = make(builtin()["vqvae"]("tiny").last, data.info, {}, 1)

    def fresh(seed: int) -> Trainer:
        return Trainer(make(stage, data.info, {"codec": codec}, seed), stage.train, Feed(data, stage.train.batch, stage.data, 0).batch, 0, 6, WHERE)

    assert apart(fresh(0), fresh(0), fresh(5), at=3, end=6) == []


def test_codes_are_not_kept_of_images_that_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec, out = tmp_path / "codec", tmp_path / "prior"
    assert pixelkiln("train", "vqvae", "--data", "digits", "--steps", 2, "--out", codec, *TINY) == 0
    words = ("train", "code-prior", "--parent", f"codec={codec}", "--steps", 2, "--out", out, "--model.cache", "true", *TINY)
    assert pixelkiln(*words, "--data.flip", "true") == 2
    assert "and --data.flip, crop or translate" in capsys.readouterr().err
    assert not out.exists()
    assert pixelkiln(*words) == 0


def test_images_are_as_the_codec_has_them_but_for_what_is_said(tmp_path: Path) -> None:
    codec = tmp_path / "codec"
    assert pixelkiln("train", "vqvae", "--data", "digits", "--steps", 2, "--out", codec, *TINY, "--data.resolution", 12, "--data.translate", 1) == 0
    words = ("train", "code-prior", "--parent", f"codec={codec}", "--steps", 2, *TINY)
    for name, said, resolution, flip, translate in (("a", (), 12, False, 1), ("b", ("--data.flip", "true", "--data.translate", 0), 12, True, 0)):
        out = tmp_path / name
        assert pixelkiln(*words, *said, "--out", out) == 0
        data = Run(out).read_recipe()["stages"][-1]["data"]
        assert (data["resolution"], data["flip"], data["translate"]) == (resolution, flip, translate)
        assert pixelkiln("train", "--resume", "--out", out, "--quiet") == 0
        assert Run(out).read_recipe()["stages"][-1]["data"] == data


def test_a_codec_of_other_images_is_refused() -> None:
    parent = make(builtin()["vqvae"]("tiny").last, DataInfo(ImageShape(3, 8, 8)), {}, 1)
    with pytest.raises(UserError, match="the data that it was trained on"):
        make(builtin()["code-prior"]("tiny").last, INFO, {"codec": parent}, 0)
    with pytest.raises(UserError, match="must be a tokenizer"):
        make(builtin()["code-prior"]("tiny").last, INFO, {"codec": make(builtin()["vae"]("tiny").last, INFO, {}, 1)}, 0)
