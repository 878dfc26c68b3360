"""Everything that a command names, found: models pinned, files of the user's with their digests, so that an image can say what it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..core.errors import UserError
from ..core.files import sha256
from .order import Setup
from .single import config_files, default_config, guarded
from .source import EXTRA, Chooser, Place, locate, pipeline_files, plain_files

__all__ = ["Gathered", "gather", "require"]


@dataclass(frozen=True)
class Gathered:
    """A setup with pinned names, where its models are, and digests of the files by absolute path."""

    setup: Setup
    model: Place
    config: Path | None = None
    controls: tuple[Path, ...] = ()
    loras: tuple[Path, ...] = ()
    guides: tuple[Path, ...] = ()
    image_encoder: Path | None = None
    digests: dict[str, str] = field(default_factory=dict)


def require() -> None:
    """Errors: `UserError` without diffusers and what it needs, before anything is loaded."""
    try:
        import accelerate  # noqa: F401
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(f"pretrained pipelines need the library {error.name or 'diffusers'}: {EXTRA}") from None


def gather(setup: Setup, say: Callable[[str], None], update: bool = False) -> Gathered:
    """Find, download and pin what the setup names. Errors: `UserError` naming what is missing or refused."""
    digests: dict[str, str] = {}

    def file(name: str) -> str:
        if not name:
            return ""
        kind, sign, rest = name.partition(":")
        prefix, path = (f"{kind}:", Path(rest)) if sign and kind in ("edges",) else ("", Path(name))
        path = path.expanduser().resolve()
        if not path.is_file():
            raise UserError(f"{path}: no such image file: give the path of a PNG, JPEG, WEBP or BMP file")
        digests[str(path)] = sha256(path)
        return f"{prefix}{path}"

    def found(name: str, chooser: Chooser, what: str) -> Place:
        place = locate(name, chooser, what, update, say)
        if place.digest:
            digests[place.name] = place.digest
        return place

    model = found(setup.model, pipeline_files(setup.variant), "model")
    config = None
    if model.path.is_file():
        name = setup.config or default_config(model.path)
        config = found(name, config_files(model.path, setup.variant, guarded(setup.safety, name)), "configuration")
    elif setup.config:
        raise UserError("--config is for a model that is one .safetensors file: leave it out")
    controls = [found(c.model, plain_files(setup.variant), "ControlNet") for c in setup.controls]
    loras = [found(x.model, _one, "LoRA") for x in setup.loras]
    guides = [found(x.model, _one, "IP-Adapter") for x in setup.guides]
    encoder = found(setup.image_encoder, plain_files("", _folder(setup.image_encoder)), "image encoder") if setup.image_encoder else None
    pinned = replace(
        setup, model=model.name, config=config.name if config else "", source=file(setup.source), mask=file(setup.mask),
        controls=tuple(replace(c, model=p.name, image=file(c.image)) for c, p in zip(setup.controls, controls, strict=True)),
        loras=tuple(replace(x, model=p.name) for x, p in zip(setup.loras, loras, strict=True)),
        guides=tuple(replace(x, model=p.name, image=file(x.image)) for x, p in zip(setup.guides, guides, strict=True)),
        image_encoder=encoder.name if encoder else "",
    )
    return Gathered(pinned, model, config.path if config else None, tuple(p.path for p in controls), tuple(map(_weights, loras)),
                    tuple(map(_weights, guides)), encoder.path if encoder else None, digests)


def _folder(name: str) -> str:
    """The folder inside a repository of the Hub that owner/name/folder[@revision] names."""
    return "" if Path(name).exists() else "/".join(name.partition("@")[0].split("/")[2:])


def _one(names: Sequence[str], fetch: Callable[[str], Path]) -> list[str]:
    """The only safetensors file."""
    found = [n for n in names if n.endswith(".safetensors")]
    if len(found) != 1:
        raise UserError(f"there are {len(found)} .safetensors files: name one, as owner/name/FILE.safetensors or by its path")
    return found


def _weights(place: Place) -> Path:
    """The file of a place that has one."""
    return place.path if place.path.is_file() else next(place.path.glob("*.safetensors"))
