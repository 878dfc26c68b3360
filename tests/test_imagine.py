"""`pixelkiln imagine` on tiny random pipelines of every class, against diffusers called directly: equal images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries under test
import pipelines  # noqa: E402

from pixelkiln.cli.main import main  # noqa: E402

TEXT = ("sd", "sd21", "sdxl", "sd3", "flux", "pixart", "sana")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing here may ask the network


def imagine(*words: object) -> int:
    return main(["imagine", *map(str, words), "--quiet", "--device", "cpu"])


def pixels(path: Path) -> np.ndarray[Any, Any]:
    return np.array(Image.open(path).convert("RGB"))


def direct(model: Path, auto: str = "AutoPipelineForText2Image", solver: str = "auto", **values: Any) -> np.ndarray[Any, Any]:
    """The images that diffusers makes itself, each with its own generator, without pixelkiln."""
    import diffusers

    pipe = getattr(diffusers, auto).from_pretrained(model, use_safetensors=True)
    if hasattr(pipe, "unet") and solver == "auto" and type(pipe.scheduler).__name__ != "EulerAncestralDiscreteScheduler":
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, algorithm_type="dpmsolver++")
    elif solver not in ("auto", "own"):
        pipe.scheduler = getattr(diffusers, solver).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if "seed" in values:
        values["generator"] = [torch.Generator().manual_seed(values.pop("seed"))]
    if model.name in ("pixart", "sana"):
        values |= {"use_resolution_binning": False, "clean_caption": False}
    return np.array(pipe(**values).images[0])


@pytest.mark.parametrize("name", TEXT)
def test_every_class_gives_what_diffusers_gives(models: Path, tmp_path: Path, name: str) -> None:
    model = pipelines.folder(models, name)
    size = {"flux": 16, "sd3": 32}.get(name, 32)
    assert imagine(model, "a red cat", "--out", tmp_path / "out", "--steps", 2, "--seed", 5, "--size", size) == 0
    expected = direct(model, prompt="a red cat", num_inference_steps=2, seed=5, width=size, height=size)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert expected.std() > 1
    recipe = json.loads(Image.open(tmp_path / "out" / "000000.png").text["pixelkiln"])  # type: ignore[attr-defined]
    assert (recipe["order"]["seed"], recipe["order"]["steps"], recipe["setup"]["model"]) == (5, 2, str(model))
    assert recipe["order"]["solver"] == ("dpmpp-2m" if name.startswith("sd") and name != "sd3" else "own")
    assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0
