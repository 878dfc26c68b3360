"""Command-line parsing that keeps a mistake to one line and knows the nearest name; shared options and readers of values."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
from typing import TYPE_CHECKING, NoReturn

from ..core.config import nearest
from ..core.errors import UserError

if TYPE_CHECKING:
    from ..engine.access import Access

__all__ = ["Formatter", "Parser", "access", "add_access", "add_machine", "bounds", "count", "numbers", "parents", "seconds", "size", "some", "truncation", "whole",
           "wholes"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, exit status 2, with the nearest known names."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Formatter} | kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """A mistake in one line."""
        found = re.match(r"unrecognized arguments: (\S+)", message)
        if found:
            option = found[1].split("=")[0]
            message = f"unknown option {option}; {nearest(option, self.known())}" if option.startswith("-") else f"unexpected {option!r}"
        found = re.match(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if found:
            choices = [c.strip(" '") for c in found[3].split(",")]
            message = f"unknown {found[1]} {found[2]!r}; {nearest(found[2], choices)}"
        raise UserError(message)

    def known(self) -> list[str]:
        """All long options, those of the verb that was asked for included."""
        found = [o for o in self._option_string_actions if o.startswith("--")]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [o for part in action.choices.values() for o in part.known()]
        return found


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Help with defaults, wide enough for dotted names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=38, width=120)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, ()) else super()._get_help_string(action)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Where the work happens."""
    group = parser.add_argument_group("where it runs (never part of the recipe)")
    group.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps, or auto")
    group.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="auto: bf16 where this machine is faster at it")
    group.add_argument("--layout", default="auto", choices=("auto", "channels-last", "contiguous"), help="of images in memory; auto: the faster one")
    group.add_argument("--threads", default="auto", type=some, metavar="N", help="processor threads; auto: OMP_NUM_THREADS, or as many as help")
    group.add_argument("--quiet", action="store_true", help="say nothing but results and errors")


def add_access(parser: argparse.ArgumentParser) -> None:
    """How the images are reached."""
    group = parser.add_argument_group("how the images are reached (never part of the recipe)")
    group.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be decoded, and say which")
    group.add_argument("--memory", type=size, metavar="SIZE", help="decoded images beyond this are streamed (4G, 500M; default: half of what is free)")
    group.add_argument("--workers", type=count, metavar="N", help="processes that decode what is streamed (default: one less than cores; 0: none)")


def access(args: argparse.Namespace) -> Access:
    """What `add_access` read."""
    from ..engine.access import Access

    return Access(args.skip_bad, args.memory, args.workers)


def seconds(text: str) -> float:
    """'90s', '10m', '1.5h', '2d' or plain seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if not found or not 0 < float(found[1]) < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 90s, 10m, 1.5h or 2d")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def whole(text: str) -> int:
    """A whole number above 0; 10k and 2M are understood."""
    found = re.fullmatch(r"(\d+)([kKM]?)", text.strip())
    if not found or int(found[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(found[1]) * {"": 1, "k": 1000, "K": 1000, "M": 1_000_000}[found[2]]


def wholes(text: str) -> list[int]:
    """Whole numbers above 0, with commas between them, rising."""
    return sorted({whole(part) for part in text.split(",")})


def numbers(text: str) -> list[float]:
    """Finite numbers with commas between them."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(abs(x) < 1e9 for x in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers: write 0.05,0.1")
    return list(dict.fromkeys(found))


def bounds(text: str) -> tuple[float, float]:
    """Two numbers with a comma between them, the smaller one first, from 0."""
    try:
        low, high = (float(part) for part in text.split(","))
        if 0 <= low < high:
            return low, high
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not LO,HI with 0 <= LO < HI")


def truncation(text: str) -> float | tuple[str, float]:
    """A number above 0, or resampled:X, scaled:X, narrowed:X."""
    way, sign, number = text.rpartition(":")
    known = ("resampled", "scaled", "narrowed")
    with contextlib.suppress(ValueError):
        if 0 < float(number) < math.inf and (way in known or not sign):
            return (way, float(number)) if sign else float(number)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, or one of {':X, '.join(known)}:X with such a number X")


def count(text: str) -> int:
    """A whole number, 0 included."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def size(text: str) -> int:
    """Bytes: 4G, 500M, 64K (powers of 1024) or a plain number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 4G or 500M")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))

def some(text: str) -> int | str:
    """A whole number above 0, or auto."""
    return text if text == "auto" else whole(text)


def parents(pairs: list[str]) -> dict[str, str]:
    """--parent role=RUN, several times."""
    found = {}
    for pair in pairs:
        role, sign, run = pair.partition("=")
        if not sign or not role or not run:
            raise UserError(f"--parent {pair}: write it as role=RUN, for instance --parent base=runs/mnist")
        found[role] = run
    return found
