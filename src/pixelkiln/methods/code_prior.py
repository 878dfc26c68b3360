"""A transformer that writes images as sequences of a codec's codes (van den Oord et al. 2017, arXiv 1711.00937, section 3.3; with a transformer:
Esser, Rombach, Ommer, Taming Transformers for High-Resolution Image Synthesis, 2021, arXiv 2012.09841, section 3.2).

    p(x) = p(c) p(x | c),   log p(c | y) = sum_i log p(c_i | c_1 .. c_{i-1}, y),   c = the codes of x                        eq. 9

The codec is a trained run, frozen; its codes are read from the images as they come. In training the class is lost now and then, so that one
model is both p(c | y) and p(c), and samples are guided by the logits u + w (l - u), l with the class and u without (Ho and Salimans 2022, arXiv
2207.12598): both halves are one batch, with one cache. Guidance comes first, then temperature, top-k and top-p.

Codes are drawn by one uniform number each, which depends on the sample's seed alone. log p(c) is exact. Where the codec's decoder is a
distribution over 8-bit images, log p(c) + log p(x | c) bounds log p(x) from below, as p(x) = sum_c p(c) p(x | c) has more terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.protocols import Likelihood, Method, Score, Tokenizer, Update
from ..core.recipe import EmaConfig, OptConfig, Recipe, Size, Stage, TrainConfig, by_size, on_mnist
from ..core.rng import streams
from ..core.types import Ability, Batch, Condition, DataInfo, Moment, Request, UserError
from ..nets.causal import Cache, Causal, CausalConfig
from ..nets.conditioning import Conditioner
from ..solvers.categorical import guided_logits, pick, probabilities

__all__ = ["CodePrior", "CodePriorConfig", "code_prior"]


@dataclass(frozen=True)
class CodePriorConfig:
    """The transformer, and how it is sampled unless the request says otherwise."""

    net: CausalConfig = field(default_factory=CausalConfig)
    drop: float = 0.1  # share of samples that lose their class
    cache: bool = False  # encode each training image once; for images that are not augmented
    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


@final
class CodePrior(Method, Likelihood):
    """net: codes so far and the class's vector -> logits of the next code; condition: class -> vector."""

    abilities = frozenset({Ability.LABEL, Ability.GUIDANCE, Ability.TEMPERATURE, Ability.TOP_K, Ability.TOP_P})
    averaged = ("net", "condition")
    roles = {"codec": Tokenizer}

    def __init__(self, info: DataInfo, config: CodePriorConfig, parents: Mapping[str, Method] | None = None) -> None:
        super().__init__(info, parents)
        codec = self.parents["codec"]
        assert isinstance(codec, Tokenizer)
        self.config, self.codec = config, [codec]  # in a list: it is no net of ours
        self.still = config.cache
        self.kept: Tensor | None = None  # (images, N) int32, -1 where nothing is known yet; made anew by a resumed run
        if not info.classes:
            self.abilities = self.abilities - {Ability.LABEL, Ability.GUIDANCE}
        self.condition = Conditioner(len(info.classes), config.net.width, config.drop)
        self.net = Causal(codec.vocabulary, [h * w for h, w in codec.grids], config.net)

    def updates(self) -> Sequence[Update]:
        """The only row."""
        return (Update("codes", ("net", "condition"), self.loss, opt="main"),)

    def loss(self, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """-log p(c | y) in nats per code."""
        tokens = self.codes_of(batch)
        vec = self.condition(batch.cond, len(tokens)).vec
        nats = F.cross_entropy(self.net(tokens, vec).flatten(0, 1), tokens.flatten())
        return {"loss": nats, "nats_per_image": nats.detach() * tokens.shape[1]}

    @torch.no_grad()
    def codes_of(self, batch: Batch) -> Tensor:
        """Codes (B, N) of training images. Those that are kept are made of an image by itself, so that they do not depend on what it came with."""
        codec, rows = self.codec[0], batch.index
        if not self.config.cache or rows is None:
            return codec.tokens(batch.x)
        known, need = 0 if self.kept is None else len(self.kept), int(rows.max()) + 1
        if self.kept is None or need > known:
            more = torch.full((max(need, 2 * known) - known, self.net.total), -1, dtype=torch.int32, device=rows.device)
            self.kept = more if self.kept is None else torch.cat([self.kept, more])
        for i in (self.kept[rows, 0] < 0).nonzero()[:, 0].tolist():
            self.kept[rows[i]] = codec.tokens(batch.x[i : i + 1])[0].int()
        return self.kept[rows].long()

    def log_codes(self, tokens: Tensor, cond: Condition) -> Tensor:
        """log p(c | condition), nats (B,), for codes (B, N)."""
        logits = self.net(tokens, self.condition(cond, len(tokens)).vec)
        return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens).sum(1)

    @torch.no_grad()
    def log_prob(self, x: Tensor, samples: int, gen: torch.Generator) -> Score:
        """log p(c) of images (B, C, H, W) whose class is not told, and with it the bound on log p(x) where the decoder gives one."""
        tokens = self.codec[0].tokens(x)
        nats, painted = self.log_codes(tokens, Condition()), self.codec[0].log_likelihood(x, tokens)
        if painted is None:
            return Score(nats, "exact", f"the {tokens.shape[1]} codes of an image", None, "one pass")
        return Score(nats + painted, "bound", "8-bit images, by their codes", 0.0, "one pass")

    def draw(self, request: Request) -> Tensor:
        """Codes one after the other, then the codec's images of them."""
        u = torch.stack([torch.rand(self.net.total, generator=g, dtype=torch.float64) for g in streams(request.seeds, "codes")])
        return self.codec[0].from_tokens(self.write((u.float() if self.device.type == "mps" else u).to(self.device), request))

    def write(self, u: Tensor, request: Request) -> Tensor:
        """Codes (B, N) from uniform numbers (B, N), by the request's knobs."""
        order = self._order(request)
        vec = self.condition(request.cond, len(u)).vec
        guided = order.guidance != 1 and self.condition.num_classes > 0
        if guided:
            vec = torch.cat([vec, self.condition(Condition(), len(u)).vec])  # (2 B, E)
        with torch.inference_mode():  # half the time of writing into a view, of which there are many
            cache = Cache(self.config.net.depth, self.net.total)
            last: Tensor | None = None
            found: list[Tensor] = []
            for i in range(self.net.total):
                logits = self.net.step(last, vec, cache)
                if guided:
                    conditional, unconditional = logits.chunk(2)
                    logits = guided_logits(conditional, unconditional, order.guidance)
                found.append(pick(probabilities(logits, order.temperature, order.top_k, order.top_p), u[:, i]))
                last = found[-1].repeat(2) if guided else found[-1]
            codes = torch.stack(found, dim=1)
        return codes.clone()  # as any tensor

    def _order(self, request: Request) -> CodePriorConfig:
        """The configuration with what the request asks in its place. UserError for what cannot be."""
        asked = {name: getattr(request, name) for name in ("guidance", "temperature", "top_k", "top_p") if getattr(request, name) is not None}
        order = replace(self.config, **asked)
        if order.temperature < 0:
            raise UserError(f"temperature {order.temperature:g}: give 0, for the likeliest code, or more")
        if order.top_k is not None and order.top_k < 1:
            raise UserError(f"top_k {order.top_k}: give 1 or more")
        if order.top_p is not None and not 0 < order.top_p <= 1:
            raise UserError(f"top_p {order.top_p:g}: give a probability above 0, to 1")
        return order


def code_prior(size: Size = "small") -> Recipe:
    """A transformer over the codes of a trained codec, --parent codec=RUN: of `vqvae`, `vqvae2`, `vqgan` or `dvae`."""
    net = by_size(
        size,
        tiny=CausalConfig(width=32, depth=2, heads=2, dropout=0.0),
        small=CausalConfig(width=128, depth=4, heads=4),
        base=CausalConfig(width=768, depth=12, heads=12),
    )
    train = TrainConfig(
        steps=by_size(size, tiny=200, small=10_000, base=200_000),
        batch=by_size(size, tiny=32, small=32, base=256),
        opts={"main": OptConfig(by_size(size, tiny="muon", small="muon", base="adamw"), adam=("net.table", "net.heads", "condition"),
                                lr=by_size(size, tiny=2e-2, small=2e-2, base=3e-4), betas=(0.9, 0.95), weight_decay=0.05, clip=1.0, warmup=0.02,
                                decay="cosine", final=0.02)},
        ema=EmaConfig(half_life=by_size(size, tiny=2_000, small=50_000, base=1_000_000)),
    )
    return Recipe(
        stages=(Stage(method=CodePrior, model=CodePriorConfig(net), train=train, parents={"codec": ""}),),
        family="codebook",
        paper="Esser, Rombach, Ommer, Taming Transformers for High-Resolution Image Synthesis, 2021, arXiv 2012.09841",
        summary="a transformer that writes the codes of a trained codec one after the other",
        expect=on_mnist(size, "vqvae --model.codebook.codes 1024 --data mnist --out V --budget 90s --threads 1; pixelkiln train code-prior --parent codec=V --model.net.dropout 0",
                        "10m", "avx2", fd=2.6),
    )
