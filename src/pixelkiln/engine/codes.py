"""The codes that a run gives images; and scores of them beside the known factors of the images: disentanglement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..core.images import from_uint8
from ..core.protocols import Codec, Tokenizer
from ..core.rng import permutation
from ..core.types import UserError
from ..data import ImageSet
from ..metrics import Gaps, Result, dci, mig, sap
from .sample import Trained
from .scores import METRICS, Protocol

__all__ = ["code_results", "codes_of", "embed", "rows_of"]

PART = 100  # images encoded at a time
Scores = dict[str, tuple[float, Mapping[str, float]]]  # value, and by factor where it has such


def rows_of(data: ImageSet, num: int | None = None) -> Tensor:
    """`num` rows of a set, evenly spread, (n,) int64; all of them where there are no more."""
    return torch.linspace(0, len(data) - 1, min(len(data) if num is None else num, len(data)), dtype=torch.float64).long()


@torch.no_grad()
def embed(trained: Trained, data: ImageSet, rows: Tensor, done: Callable[[int], None] | None = None) -> Tensor:
    """Codes of the rows (n,) of a set, on the CPU: as the method encodes, or numbers of codes (n, N) int64 where it has a codebook.

    Errors: `UserError` for a method that does not encode.
    """
    method, device, found = _codec(trained), torch.device(trained.where.device), list[Tensor]()
    for part in torch.split(rows, PART):
        x = from_uint8(data.images_of(part)).to(device)
        found.append((method.tokens(x) if isinstance(method, Tokenizer) else method.encode(x)).cpu())
        if done is not None:
            done(sum(map(len, found)))
    return torch.cat(found)


def _codec(trained: Trained) -> Codec:
    if not isinstance(trained.method, Codec):
        raise UserError(f"{trained.facts['recipe']} does not encode images: give a run that does, such as a vae's")
    return trained.method


@torch.no_grad()
def codes_of(trained: Trained, images: Tensor) -> Tensor:
    """Codes (N, J) of images uint8 (N, C, H, W), in fp32, on the CPU. Errors: `UserError` for a method whose codes are not vectors of numbers."""
    method, device = _codec(trained), torch.device(trained.where.device)
    found = [method.encode(from_uint8(part).to(device)).cpu() for part in torch.split(images, PART)]
    if found[0].ndim != 2 or not found[0].is_floating_point():
        shape = "x".join(map(str, found[0].shape[1:]))
        raise UserError(f"a code of {trained.facts['recipe']} is no vector ({shape} {str(found[0].dtype).removeprefix('torch.')}): give a run with one, such as a vae's")
    return torch.cat(found).float()


def code_results(trained: Trained, names: Sequence[str], test: ImageSet, num: int, seed: int) -> list[Result]:
    """The scores `names` of up to `num` test images' codes. floor: the mean score of the same codes, given to other images at random, three times.

    Errors: `UserError` for images without factors, a method without vectors as codes, or what a score refuses.
    """
    if not names:
        return []
    if not test.factors:
        raise UserError(f"{names[0]} needs images whose factors are known, and {test.name} has none: give --data shapes, or leave it out of the metrics")
    rows = torch.arange(min(num, len(test)))
    factors = {name: values[rows] for name, values in test.factors.items()}
    codes = codes_of(trained, test.images_of(rows))
    others = [codes[permutation(len(codes), seed, "floor", k)] for k in range(3)]
    shared: Protocol = {"of": "codes of test images", "data": f"{test.name} {test.split}", "N": len(codes), "units": codes.shape[1],
                        "factors": " ".join(factors), "floor": "codes of other images"}
    found = []
    for name in names:
        try:
            floors = [_scores(name, z, factors, seed) for z in others]
            for title, (value, parts) in _scores(name, codes, factors, seed).items():
                each: Protocol = {"by factor": " ".join(f"{k} {v:.2g}" for k, v in parts.items())} if parts else {}
                floor = sum(f[title][0] for f in floors) / len(floors)
                found.append(Result(title, value, METRICS[name].better, floor, {**shared, **METRICS[name].own, **each}))
        except ValueError as e:
            raise UserError(f"{name}: {e}; or leave it out of the metrics") from None
    return found


def _scores(name: str, codes: Tensor, factors: Mapping[str, Tensor], seed: int) -> Scores:
    """By title: DCI is three scores."""
    if name != "dci":
        gaps: Gaps = {"mig": mig, "sap": sap}[name](codes, factors)
        return {name: (gaps.value, gaps.factors)}
    it = dci(codes, factors, seed)
    return {"dci-disentanglement": (it.disentanglement, {}), "dci-completeness": (it.completeness.value, it.completeness.factors),
            "dci-informativeness": (it.informativeness.value, it.informativeness.factors)}
