"""A pipeline of diffusers from files on this machine: its task by AutoPipeline, safetensors only, no code but the libraries'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import read_json
from .gather import Gathered
from .order import Setup
from .single import guarded, open_single
from .source import components

__all__ = ["family", "open_pipeline", "quiet"]

FAMILIES = {"StableDiffusionXL": "sdxl", "StableDiffusion3": "sd3", "StableDiffusion": "sd", "LatentConsistencyModel": "sd", "Flux2": "other",
            "Flux": "flux", "PixArt": "pixart", "Sana": "sana"}  # the first that a class's name begins with


def family(pipe: Any) -> str:
    """What kind of text encoders and embeddings it has: sd, sdxl, sd3, flux, pixart, sana, or other."""
    name = pipe if isinstance(pipe, str) else type(pipe).__name__
    return next((kind for prefix, kind in FAMILIES.items() if name.startswith(prefix)), "other")


def quiet() -> None:
    """Keep the libraries' own warnings and bars away from the user; what matters is said here."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def open_pipeline(found: Gathered) -> Any:
    """The pipeline for the setup's task, on the CPU, in its precision. Errors: `UserError` for what diffusers cannot do with this model."""
    import torch
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import SafetensorError

    quiet()
    setup = found.setup
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[setup.precision]
    more: dict[str, Any] = {"controlnet": _controls(found, dtype)} if setup.controls else {}
    try:
        pipe = _single(found, dtype, more) if found.model.path.is_file() else _folder(found.model.path, setup, dtype, more)
        _loras(pipe, found)
        _guides(pipe, found, dtype)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, ImportError, RuntimeError, TypeError, SafetensorError, SingleFileComponentError) as error:  # whatever files of others make of it
        raise UserError(f"{setup.model}: cannot be opened for {_words(setup)} ({_line(error)}): choose another model or leave options out") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__


def _words(setup: Setup) -> str:
    task = {"text": "text to image", "image": "image to image", "inpaint": "inpainting"}[setup.task]
    return task + (" with ControlNet" if setup.controls else "")


def _class(folder: Path) -> str:
    """The class of the pipeline, after a check that it and its parts are the libraries' own."""
    import diffusers

    index = read_json(folder / "model_index.json")
    parts = components(index, str(folder))
    kind = str(index["_class_name"])
    for name, (library, _) in parts.items():
        if library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, library):
            raise UserError(f"{folder}: its {name} is code of {library}, not of diffusers or transformers, and is not run: choose another model")
    if not hasattr(diffusers, kind):
        raise UserError(f"{folder}: its pipeline {kind} is not in diffusers {diffusers.__version__}: install a newer one, or choose another model")
    return kind


def _auto(setup: Setup) -> Any:
    import diffusers

    names = {"text": "AutoPipelineForText2Image", "image": "AutoPipelineForImage2Image", "inpaint": "AutoPipelineForInpainting"}
    return getattr(diffusers, names[setup.task])


def _instructed(kind: str, setup: Setup) -> bool:
    """Whether the pipeline edits by instruction. Errors: `UserError` for a pipeline that is not made for the setup's task."""
    if "InstructPix2Pix" in kind:
        if setup.task != "image" or setup.controls:
            raise UserError(f"{setup.model} edits by instruction: give --source IMG, and neither --mask nor --control")
        return True
    if "Inpaint" in kind and setup.task != "inpaint":
        raise UserError(f"{setup.model} is made for inpainting: give --source with --mask or --outpaint, or choose another model")
    return False


def _folder(folder: Path, setup: Setup, dtype: Any, more: dict[str, Any]) -> Any:
    import diffusers

    kind = _class(folder)
    auto = getattr(diffusers, kind) if _instructed(kind, setup) else _auto(setup)
    if setup.safety == "off" and "safety_checker" in read_json(folder / "model_index.json"):
        more = more | {"safety_checker": None}
    return auto.from_pretrained(str(folder), dtype=dtype, use_safetensors=True, variant=setup.variant or None, local_files_only=True, **more)


def _single(found: Gathered, dtype: Any, more: dict[str, Any]) -> Any:
    """From one file, in the layout of its authors."""
    setup, config = found.setup, found.config
    assert config is not None, "a file is gathered with a configuration"
    kind = _class(config)
    instructed = _instructed(kind, setup)
    pipe = open_single(found.model.path, config, kind, dtype, setup.variant, guarded(setup.safety, setup.config))
    return pipe if instructed else _auto(setup).from_pipe(pipe, **more)


def _controls(found: Gathered, dtype: Any) -> Any:
    """One ControlNet, or a list."""
    import diffusers

    nets = []
    for path, control in zip(found.controls, found.setup.controls, strict=True):
        kind = str(read_json(path / "config.json").get("_class_name"))
        if "ControlNet" not in kind or not hasattr(diffusers, kind):
            raise UserError(f"{control.model} is no ControlNet of diffusers but {kind}: give another")
        nets.append(getattr(diffusers, kind).from_pretrained(str(path), dtype=dtype, use_safetensors=True, local_files_only=True))
    return nets[0] if len(nets) == 1 else nets


def _loras(pipe: Any, found: Gathered) -> None:
    if not found.loras:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise UserError(f"{type(pipe).__name__} takes no LoRA in this diffusers: leave --lora out")
    from diffusers.utils import USE_PEFT_BACKEND

    if not USE_PEFT_BACKEND:
        raise UserError("--lora needs the library peft: pip install 'pixelkiln[pretrained]'")
    names = []
    for i, path in enumerate(found.loras):
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"lora{i}", use_safetensors=True, local_files_only=True)
        names.append(f"lora{i}")
    pipe.set_adapters(names, [x.weight for x in found.setup.loras])


def _guides(pipe: Any, found: Gathered, dtype: Any) -> None:
    if not found.guides:
        return
    from diffusers.loaders import IPAdapterMixin

    if not isinstance(pipe, IPAdapterMixin):  # Stable Diffusion 3 and FLUX have others, with other encoders
        raise UserError(f"{type(pipe).__name__} takes no IP-Adapter here (Stable Diffusion 1, 2 and XL do): leave --ip-adapter out")
    if found.image_encoder is not None:
        from transformers import CLIPVisionModelWithProjection

        encoder = CLIPVisionModelWithProjection.from_pretrained(str(found.image_encoder), dtype=dtype, use_safetensors=True, local_files_only=True)
        pipe.register_modules(image_encoder=encoder)
    if getattr(pipe, "image_encoder", None) is None:
        raise UserError("--ip-adapter needs the image encoder that it was trained with: add --image-encoder FOLDER or owner/name/folder")
    pipe.load_ip_adapter([str(p.parent) for p in found.guides], subfolder="", weight_name=[p.name for p in found.guides],
                         image_encoder_folder=None, local_files_only=True)
    pipe.set_ip_adapter_scale([g.scale for g in found.setup.guides])
