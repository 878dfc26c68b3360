"""Command-line parsing that keeps a mistake to one line and knows the nearest name; shared options and readers of values."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from ..core.config import nearest
from ..core.types import UserError

__all__ = ["Parser", "add_machine", "parents", "seconds", "whole"]


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
    group.add_argument("--quiet", action="store_true", help="say nothing but results and errors")


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


def parents(pairs: list[str]) -> dict[str, str]:
    """--parent role=RUN, several times."""
    found = {}
    for pair in pairs:
        role, sign, run = pair.partition("=")
        if not sign or not role or not run:
            raise UserError(f"--parent {pair}: write it as role=RUN, for instance --parent base=runs/mnist")
        found[role] = run
    return found
