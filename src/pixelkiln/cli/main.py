"""The command line: `pixelkiln VERB ...`. A user's mistake ends in one line and exit status 2."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..core.errors import UserError
from ..core.version import __version__
from .options import Parser

__all__ = ["main"]

VERBS = {
    "list": "the catalog: family, conditions, likelihood, paper, measured number",
    "train": "train a recipe on your images, into a run folder",
    "sample": "images from a run",
    "interpolate": "a walk between two seeds or two images",
    "traverse": "what each unit of a latent space does: a row of images for each",
    "arithmetic": "images with an attribute added, and another taken away, in the space of codes",
    "reconstruct": "images, and what a run makes of their codes",
    "embed": "the codes of images, as arrays",
    "evaluate": "measure a run, a folder or an .npz against real images",
    "solvers": "one run, all solvers: scores against the number of network evaluations",
    "ema": "one run, many lengths of its weights' average: scores against the length",
    "data": "what a source of images holds: classes, sizes, duplicates, leaks, what is bad",
    "imagine": "images of a pretrained text-to-image pipeline, from prompts",
    "reproduce": "an image of `imagine` made again from the recipe that it carries",
    "show": "what a run is, how it was trained, its curves",
}


SHARED = ("train", "sample", "evaluate", "solvers", "ema")  # what several processes do together; the first does the others alone


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


def parsed(parser: Parser, argv: Sequence[str]) -> Any:
    """The arguments. Prompts may stand after options, where argparse no longer expects them. Errors: `UserError` for what is unknown."""
    args, rest = parser.parse_known_args(argv)
    if rest and ("prompt" not in args or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.prompt = [*args.prompt, *rest]
    return args


def verb_module(verb: str) -> Any:
    """The file of a verb."""
    return importlib.import_module(f"..cli.{verb}", __package__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with processes() as first:
            args = parsed(build(argv), argv)
            if "device" in args:  # a verb that computes
                importlib.import_module("..engine.memory", __package__).keep_memory()
            return int(verb_module(args.verb).run(args)) if first or args.verb in SHARED else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        error: Any = e
        if isinstance(e, OSError) and e.filename is not None and not hasattr(e, "status"):
            error = UserError(f"{e.filename}: {e.strerror}: check this name and its permissions")
        if not hasattr(error, "status"):
            raise
        print(f"pixelkiln: {error}", file=sys.stderr)
        return int(error.status)


@contextlib.contextmanager
def processes() -> Iterator[bool]:
    """Whether this is the first of the processes that torchrun has started (where it has): they meet first, and end together."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield True
        return
    from ..engine.parallel import join

    with join() as team:
        yield team.first
