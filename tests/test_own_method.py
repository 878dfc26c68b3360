"""The method in one file that CONTRIBUTING shows: it trains, samples, measures, and can be a parent, as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pixelkiln.cli.main import main

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The recipe's name, and a run of it."""
    folder = tmp_path_factory.mktemp("own")
    code = re.search(r"```python\n(\"\"\"A diffusion model.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    (folder / "my_edm.py").write_text(code[1], encoding="utf-8")
    name = f"{folder / 'my_edm.py'}:my_recipe"
    args = ["--data", "digits", "--out", str(folder / "run"), "--size", "tiny", "--steps", "30", "--model.width", "32", "--quiet"]
    assert main(["train", name, *args]) == 0
    assert json.loads((folder / "run" / "recipe.json").read_text())["recipe"] == name
    return name, folder / "run"


def test_it_samples_once_its_code_is_named(own: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, run = own
    assert main(["sample", str(run), "-n", "4", "--out", str(tmp_path / "a.png"), "--quiet"]) == 2
    assert f"--recipe {name}" in capsys.readouterr().err
    assert main(["sample", str(run), "--recipe", name, "-n", "4", "--out", str(tmp_path / "a.png"), "--quiet"]) == 0


def test_a_built_in_method_builds_on_it(own: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, run = own
    edit, picture = tmp_path / "edit", tmp_path / "one"
    asked = ["train", "sdedit", "--parent", f"base={run}", "--out", str(edit), "--size", "tiny", "--quiet"]
    assert main(asked) == 2
    assert f"--recipe {name}" in capsys.readouterr().err
    assert not edit.exists()
    assert main([*asked, "--recipe", name]) == 0
    assert main(["sample", str(run), "--recipe", name, "-n", "1", "--out", str(picture), "--quiet"]) == 0
    source = next(picture.rglob("*.png"))
    assert main(["sample", str(edit), "--recipe", name, "--source", str(source), "-n", "2", "--out", str(tmp_path / "e.png"), "--quiet"]) == 0
