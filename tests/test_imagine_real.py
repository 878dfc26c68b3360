"""The document's three examples with real weights, where the environment names a model: PIXELKILN_REAL_MODEL=owner/name or a folder.

PIXELKILN_REAL_OPTIONS: more words for the command, for instance "--size 256 --device cpu". The first time needs a network, unless the model is a folder.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'pixelkiln[pretrained]'")
from pipelines import pixels, recipe
from pixelkiln.cli.main import main

MODEL, OPTIONS = os.environ.get("PIXELKILN_REAL_MODEL", ""), shlex.split(os.environ.get("PIXELKILN_REAL_OPTIONS", ""))
pytestmark = [pytest.mark.skipif(not MODEL, reason="real weights: set PIXELKILN_REAL_MODEL to owner/name or a folder of a text-to-image pipeline"),
              pytest.mark.filterwarnings("ignore")]
STYLES = ("Van Gogh", "Monet", "Japanese ukiyo-e", "Cyberpunk", "Art Deco")
EXAMPLES = {
    "basic": (["A serene lake surrounded by mountains at sunset", "A futuristic city with flying cars and neon lights", "A cute cartoon fox in a forest"], 3, {"sheet.png"}),
    "styles": (["a landscape with mountains and a lake", *(word for style in STYLES for word in ("--style", style))], 5, {"sheet.png"}),
    "walk": (["a portrait of a young woman", "a portrait of an elderly man", "--frames", "5"], 5, {"strip.png", "walk.gif"}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_document(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, count, sheets = EXAMPLES[name]
    assert main(["imagine", MODEL, *words, "--guidance", "7.5", "--steps", "4", "--safety", "record", "--out", str(tmp_path / "out"), *OPTIONS, "--quiet"]) == 0
    files = [tmp_path / "out" / f"{i:06d}.png" for i in range(count)]
    assert {*(f.name for f in files), *sheets} <= {p.name for p in (tmp_path / "out").iterdir()} <= {*(f.name for f in files), *sheets, "walk.mp4"}
    images = [pixels(f) for f in files]
    assert all(image.std() > 5 for image in images), "none is blank"
    assert all((a != b).any() for a, b in zip(images, images[1:])), "none is like the one before"
    assert recipe(files[0])["order"]["steps"] == 4
    capsys.readouterr()
    for file in files[:2]:  # an end of the walk, and a point on the way
        assert main(["reproduce", str(file), "--quiet"]) == 0
        assert capsys.readouterr().out == "identical\n"
