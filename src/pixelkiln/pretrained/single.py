"""One .safetensors file in the layout of its authors: what kind of pipeline it is, and what it lacks of one.

Such a file holds the network that denoises, mostly the text encoders and the VAE, and neither configuration nor vocabulary: those come from a pipeline
of the same kind, and so do the models that the file lacks. A safety check comes along only where the configuration is a folder that has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.files import read_json
from .source import SMALL, Chooser, components, weights_of

__all__ = ["config_files", "default_config", "guarded", "lacking", "open_single"]

KINDS = ("v1", "v2", "xl_base", "xl_refiner", "playground", "inpainting", "xl_inpaint", "sd3", "flux", "instruct-pix2pix", "sana", "auraflow", "chroma", "lumina2")
FIRST = ("cond_stage_model.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l.")
SECOND = ("conditioner.embedders.0.model.", "conditioner.embedders.1.", "text_encoders.clip_g.")


def _shapes(file: Path) -> dict[str, Tensor]:
    """The file's tensors without their contents. Errors: `UserError` for a file that is no safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file}: no readable .safetensors file ({error}): fetch it again") from None


def default_config(file: Path) -> str:
    """The name on the Hub of a pipeline of the file's kind. Errors: `UserError` for a kind that makes no images from text."""
    from diffusers.loaders import single_file_utils as utils

    kind: str = utils.infer_diffusers_model_type(_shapes(file))
    if not kind.startswith(KINDS):
        raise UserError(f"{file}: its kind ({kind}) is not one of a text-to-image pipeline: give another, or a folder")
    return str(utils.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"])


def guarded(safety: str, config: str) -> bool:
    """Whether the safety check of the configuration is used: that of a folder on this machine, unless it is off."""
    return safety != "off" and Path(config).expanduser().is_dir()


def lacking(file: Path, index: Mapping[str, Any]) -> list[str]:
    """The parts of the pipeline with this index that are models and not in the file."""
    names = _shapes(file)

    def held(part: str, kind: str) -> bool:
        inside = ("first_stage_model.", "vae.") if part == "vae" else ("text_encoders.t5xxl.",) if "T5" in kind else FIRST if part == "text_encoder" else SECOND
        return any(name.startswith(inside) for name in names)

    parts = components(index, str(file))
    models = [part for part in parts if part.startswith(("vae", "text_encoder", "image_encoder", "safety_checker"))]
    return [part for part in models if part in ("image_encoder", "safety_checker") or not held(part, parts[part][1])]


def config_files(file: Path, variant: str, checked: bool) -> Chooser:
    """Chooses of a pipeline what goes with the file: index, small files, and the weights that the file lacks; the safety check's only if `checked`."""

    def choose(names: Sequence[str], fetch: Callable[[str], Path]) -> list[str]:
        if "model_index.json" not in names:
            raise UserError("--config: this is no pipeline of diffusers (it has no model_index.json): give a folder or owner/name of one")
        wanted = [n for n in names if n.endswith(SMALL) and n.count("/") < 2 and not n.endswith(".index.json")]
        for part in lacking(file, read_json(fetch("model_index.json"))):
            if part == "safety_checker" and not checked:
                continue
            weights = weights_of([n for n in names if n.startswith(f"{part}/") and n.count("/") == 1], part, variant)
            if not weights and part != "safety_checker":
                raise UserError(f"{file} holds no {part}, and its configuration has no weights of one: add --config with a folder or owner/name of a whole pipeline")
            wanted += weights
        return wanted

    return choose


def open_single(file: Path, config: Path, kind: str, dtype: Any, variant: str, checked: bool) -> Any:
    """The pipeline of class `kind` in the file, with what it lacks from the folder `config`."""
    import diffusers

    index = read_json(config / "model_index.json")
    parts = components(index, str(config))
    more: dict[str, Any] = {"safety_checker": None} if "safety_checker" in parts else {}
    for part in lacking(file, index):
        if not any((config / part).glob("*.safetensors")) or (part == "safety_checker" and not checked):
            continue
        library, name = parts[part]
        home = getattr(diffusers.pipelines, library, None) or import_module(library)
        more[part] = getattr(home, name).from_pretrained(str(config / part), dtype=dtype, use_safetensors=True, local_files_only=True, variant=variant or None)
    pipe = getattr(diffusers, kind).from_single_file(str(file), config=str(config), dtype=dtype, local_files_only=True, **more)
    for part, model in pipe.components.items():
        if isinstance(model, torch.nn.Module):
            missing = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
            if missing:
                raise UserError(f"{file} lacks {len(missing)} tensors of its {part}, {missing[0]} among them: fetch it again, or choose another --config")
            model.eval()  # diffusers leaves T5 in training, with dropout
    return pipe
