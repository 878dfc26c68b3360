"""Models that are one .safetensors file with their authors' names of tensors: images equal to those of the same pipeline as a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
import pipelines
from authors import save_single
from fake_hub import Hub, serving
from PIL import Image
from pipelines import direct, imagine, picture, pixels, recipe
from pixelkiln.cli.main import main
from pixelkiln.pretrained import source

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_network")]
COMMIT = "c" * 40
WORDS = ("a red cat", "--steps", 2, "--seed", 3, "--size", 16)


def configuration(model: Path, path: Path, keep: tuple[str, ...] = ()) -> Path:
    """The folder without its weights, but those of the parts to keep."""
    return shutil.copytree(model, path, ignore=lambda where, names: [n for n in names if n.endswith(".safetensors") and Path(where).name not in keep])


def single(models: Path, name: str, path: Path) -> Path:
    import diffusers

    return save_single(diffusers.DiffusionPipeline.from_pretrained(pipelines.folder(models, name)), path)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_single_file_gives_the_images_of_its_folder(models: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = pipelines.folder(models, name)
    file, config = single(models, name, tmp_path / "one.safetensors"), configuration(model, tmp_path / "config")
    assert imagine(file, *WORDS, "--config", config, "--out", tmp_path / "out") == 0
    found = recipe(tmp_path / "out" / "000000.png")
    expected = direct(model, prompt="a red cat", num_inference_steps=2, seed=3, width=16, height=16)
    assert np.array_equal(pixels(tmp_path / "out" / "000000.png"), expected)
    assert (found["setup"]["model"], found["setup"]["config"]) == (str(file), str(config)) and set(found["digests"]) == {str(file), str(config)}
    assert found["facts"]["safety"] == "none: the model supplies no check"
    assert main(["reproduce", str(tmp_path / "out" / "000000.png"), "--quiet"]) == 0
    assert capsys.readouterr().out.endswith("identical\n")
