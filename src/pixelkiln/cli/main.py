"""The command line: `pixelkiln VERB ...`. A user's mistake ends in one line and exit status 2."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..core.types import UserError
from ..core.version import __version__
from .options import Parser

__all__ = ["main"]

VERBS = {
    "list": "the catalog: family, conditions, likelihood, paper, measured number",
    "train": "train a recipe on your images, into a run folder",
    "sample": "images from a run",
    "interpolate": "a walk between two seeds or two images",
    "evaluate": "measure a run, a folder or an .npz against real images",
    "show": "what a run is, how it was trained, its curves",
}


def build(argv: Sequence[str]) -> Parser:
    """The parser; only the verb that is asked for is imported."""
    parser = Parser("pixelkiln", description="Every family of image generator behind one command.")
    parser.add_argument("--version", action="version", version=f"pixelkiln {__version__}")
    sub = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    asked = next((a for a in argv if not a.startswith("-")), None)
    for verb, about in VERBS.items():
        part = sub.add_parser(verb, help=about, description=f"{about[0].upper()}{about[1:]}.")
        if verb == asked:
            module = verb_module(verb)
            module.add(part)
            if verb == "train":
                probe = Parser("pixelkiln train", add_help=False)
                module.add(probe)
                probe.error = lambda message: None  # type: ignore[assignment, method-assign, return-value]
                found, _ = probe.parse_known_args([a for a in argv[list(argv).index(verb) + 1 :] if a not in ("-h", "--help")])
                if found.recipe:
                    module.add_recipe(part, found.recipe, found.size if found.size in ("tiny", "small", "base") else "small")
    return parser


def verb_module(verb: str) -> Any:
    """The file of a verb."""
    return importlib.import_module(f"..cli.{verb}", __package__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build(argv).parse_args(argv)
        return int(verb_module(args.verb).run(args))
    except UserError as e:
        print(f"pixelkiln: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        if e.filename is None:
            raise
        print(f"pixelkiln: {UserError(f'{e.filename}: {e.strerror}: check this name and its permissions')}", file=sys.stderr)
        return 2
    except Exception as e:
        from ..engine.loop import Diverged
        from ..engine.session import Interrupted

        if isinstance(e, Interrupted):
            print(f"pixelkiln: {e}", file=sys.stderr)
            return 128 + e.signum
        if isinstance(e, Diverged):
            print(f"pixelkiln: {e}", file=sys.stderr)
            return 1
        raise
