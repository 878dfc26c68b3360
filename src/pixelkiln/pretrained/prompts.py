"""Prompts as text: from files, with wildcards and alternatives, in styles, with weights. Nothing here knows a model.

    __animal__        a line of animal.txt in the wildcards' folder, chosen by the seed
    {red|blue} car    every alternative: a matrix of prompts
    (word:1.3)        a weight; inner ones multiply; other parentheses are text; \\( and \\) are text always
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from ..core.rng import key

__all__ = ["Weighted", "alternatives", "from_file", "parse_weights", "styled", "wildcards"]

CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")
WILD = re.compile(r"__([\w-]+)__")
CLOSE = re.compile(r":\s*([+-]?(\d+\.?\d*|\.\d+))\s*\)")
MAX_PROMPTS = 10_000


@dataclass(frozen=True)
class Weighted:
    """A prompt as the encoders see it, and a weight for each of its characters."""

    text: str
    weights: tuple[float, ...]

    @property
    def plain(self) -> bool:
        """Whether nothing is weighted."""
        return all(w == 1 for w in self.weights)


def from_file(path: Path) -> list[str]:
    """One prompt a line; empty lines and lines that begin with # are skipped. Errors: `UserError` naming the file."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text: save it as such") from None
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}: give a text file with one prompt a line") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise UserError(f"{path}: no prompts: write one a line")
    return found


def alternatives(prompt: str) -> list[str]:
    """All prompts that the {a|b} in it stand for, the last changing fastest."""
    parts = CHOICE.split(prompt)  # text, choices, text, ...
    options = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    count = 1
    for option in options:
        count *= len(option)
    if count > MAX_PROMPTS:
        raise UserError(f"the alternatives of this prompt make {count:,} prompts, more than {MAX_PROMPTS:,}: leave some out")
    return ["".join(choice).strip() for choice in itertools.product(*options)]


def wildcards(prompt: str, seed: int, folder: Path | None) -> str:
    """The prompt with every __name__ replaced by a line of name.txt, chosen by the seed, the name and its place in the prompt."""
    found = list(WILD.finditer(prompt))
    if not found or folder is None:
        return prompt
    text, end = "", 0
    for i, match in enumerate(found):
        lines = from_file(folder / f"{match[1]}.txt")
        text += prompt[end : match.start()] + lines[key(seed, "wildcard", match[1], i) % len(lines)]
        end = match.end()
    return text + prompt[end:]


def styled(content: str, style: str) -> str:
    """The content in a style: "CONTENT, in the style of STYLE", or what a style that holds {} makes of it."""
    return style.replace("{}", content) if "{}" in style else f"{content}, in the style of {style}"


def parse_weights(prompt: str, literal: bool = False) -> Weighted:
    """Weights of the form (text:number), inner ones multiplied; parentheses without a number stay. Errors: `UserError` for weights beyond 0 to 10."""
    if literal:
        return Weighted(prompt, (1.0,) * len(prompt))
    pieces = list(_pieces(prompt, 0, 1.0, len(prompt)))
    text = "".join(piece for piece, _ in pieces)
    return Weighted(text, tuple(w for piece, w in pieces for _ in piece))


def _pieces(prompt: str, start: int, weight: float, end: int) -> Iterator[tuple[str, float]]:
    """Text and weights between two places of the prompt."""
    i = start
    while i < end:
        c = prompt[i]
        if c == "\\" and i + 1 < end and prompt[i + 1] in "()":
            yield prompt[i + 1], weight
            i += 2
            continue
        closed = _closing(prompt, i, end) if c == "(" else None
        if closed is None:
            yield c, weight
            i += 1
            continue
        colon, after, number = closed
        if not 0 <= number <= 10:
            raise UserError(f"the weight {number:g} in {prompt[i:after]!r} is not between 0 and 10: correct it")
        yield from _pieces(prompt, i + 1, weight * number, colon)
        i = after


def _closing(prompt: str, start: int, end: int) -> tuple[int, int, float] | None:
    """Where the parenthesis that opens at `start` has its colon and its end, and its number; None where it has no weight."""
    depth, i = 0, start
    while i < end:
        if prompt[i] == "\\":
            i += 2
            continue
        if depth == 1 and prompt[i] == ":" and (found := CLOSE.match(prompt, i, end)):
            return i, found.end(), float(found[1])
        depth += {"(": 1, ")": -1}.get(prompt[i], 0)
        if depth == 0:
            return None
        i += 1
    return None
