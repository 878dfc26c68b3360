"""Start-up: what is only shown needs no torch, the kept catalog follows the files, and a lost or unwritable cache changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pixelkiln
from pixelkiln.core import listing as module
from pixelkiln.core.cache import keep, recall
from pixelkiln.core.catalog import builtin, overridable
from pixelkiln.core.listing import listing, options, stamp
from pixelkiln.engine.log import Log
from pixelkiln.engine.train import Order, train
from pixelkiln.engine.where import Where

HEAVY = ("torch", "numpy", "pyarrow", "sklearn", "PIL", "safetensors", "diffusers", "transformers")
TOYS = str(Path(__file__).with_name("toys.py"))


def heavy(cache: Path, *argv: str) -> tuple[int, list[str], str]:
    """Exit status of a command in a process of its own, which of the heavy packages it imported, and what it printed."""
    code = (
        "import sys\nfrom pixelkiln.cli.main import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as e:\n    status = e.code or 0\n"
        f"print('HEAVY', *[m for m in {HEAVY} if m in sys.modules], file=sys.stderr)\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], env=os.environ | {"PIXELKILN_CACHE": str(cache)}, capture_output=True, text=True)
    return done.returncode, done.stderr.split("HEAVY")[-1].split(), done.stdout


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that a first `list` has filled."""
    cache = tmp_path_factory.mktemp("cache")
    status, used, _ = heavy(cache, "list")
    assert status == 0
    assert "torch" in used, "the first one has to read the recipes"
    return cache


@pytest.mark.parametrize(
    "argv",
    [("--version",), ("--help",), ("list",), ("list", "--json"), ("list", "--help"), ("train", "--help"), ("train", "ddpm", "--help"),
     ("train", "vae_mlp", "--size", "tiny", "--help"), ("sample", "--help"), ("interpolate", "--help"), ("traverse", "--help"), ("show", "--help"),
     ("arithmetic", "--help"), ("reconstruct", "--help"), ("embed", "--help"), ("imagine", "--help"), ("reproduce", "--help"),
     ("solvers", "--help"), ("ema", "--help"),
     ("train", "ddpm", "--out", "x", "--model.net.widht", "3")],
    ids=" ".join,
)
def test_what_is_only_shown_imports_nothing_heavy(warm: Path, argv: tuple[str, ...]) -> None:
    status, used, _ = heavy(warm, *argv)
    assert status == (2 if "--model.net.widht" in argv else 0)
    assert used == []


def test_a_first_command_and_a_later_one_print_the_same(warm: Path, tmp_path: Path) -> None:
    for argv in (("list", "--json"), ("train", "vae", "--size", "base", "--help")):
        assert heavy(warm, *argv)[2] == heavy(tmp_path / argv[0], *argv)[2] != ""


def test_the_kept_listing_is_the_catalog(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(warm))
    monkeypatch.setattr(module, "_make", lambda: pytest.fail("it was kept"))
    assert list(listing()) == list(builtin())
    for name, make in builtin().items():
        for size in ("tiny", "small", "base"):
            own, shown = [(n, f.words) for n, f in overridable(make(size))], [(o.name, o.words) for o in options(name, size)]
            assert shown[: len(own)] == own  # and then what a union's other members have
            unions = {n for n, words in own if "|" in words and any(other.startswith(f"{n}.") for other, _ in own)}
            assert {n for n in unions for extra, _ in shown[len(own) :] if extra.startswith(f"{n}.")} == unions
            assert all(any(extra.startswith(f"{n}.") for n in unions) for extra, _ in shown[len(own) :])


def test_any_change_of_a_file_changes_the_stamp(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(module.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    seen = [stamp(package)]
    assert stamp(package) == seen[0]
    file = package / "methods" / "pca.py"
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
    seen.append(stamp(package))
    file.write_text(file.read_text() + "\n")
    seen.append(stamp(package))
    (package / "methods" / "new.py").write_text("")
    seen.append(stamp(package))
    file.unlink()
    seen.append(stamp(package))
    (package / "methods" / "new.py").rename(package / "methods" / "other.py")
    seen.append(stamp(package))
    assert len(set(seen)) == len(seen)


def test_a_new_recipe_is_listed_at_once(tmp_path: Path) -> None:
    """In a copy of the package: list, add a recipe to a file, list again."""
    copy = tmp_path / "site" / "pixelkiln"
    shutil.copytree(module.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def names() -> list[str]:
        env = os.environ | {"PIXELKILN_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(copy.parent)}
        done = subprocess.run([sys.executable, "-m", "pixelkiln", "list", "--json"], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
        return [r["recipe"] for r in json.loads(done.stdout)]

    before = names()
    file = copy / "methods" / "pca.py"
    file.write_text(file.read_text() + '\n\ndef pca_again(size: Size = "small") -> Recipe:\n    """The same."""\n    return pca(size)\n')
    assert names() == sorted([*before, "pca-again"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stamp": 3}'])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path))
    good = listing()
    (file,) = tmp_path.glob("catalog-*.json")
    file.write_text(text)
    assert listing() == good
    assert json.loads(file.read_text())["recipes"] == good


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "file" / "below"))
    keep("anything", {"a": 1})
    assert recall("anything") == {}
    assert list(listing()) == list(builtin())
    monkeypatch.delenv("PIXELKILN_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    keep("anything", {"a": 1})
    assert recall("anything") == {}


def test_a_users_recipe_is_read_from_its_file_each_time(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    head = "from pixelkiln.core.recipe import Recipe\nfrom pixelkiln.methods.pca import pca\n"
    for doc in ("one", "two"):
        file.write_text(f'{head}\ndef {doc}(size: str = "small") -> Recipe:\n    """It."""\n    return pca(size)\n')
        status, _, shown = heavy(tmp_path / "cache", "train", f"{file}:{doc}", "--help")
        assert status == 0
        assert f"mine.py:{doc}" in shown
        assert "--model.components" in shown
    assert heavy(tmp_path / "cache", "train", f"{file}:one", "--help")[0] == 2
    assert not list((tmp_path / "cache").glob("*")), "code outside the package is never kept"


def test_one_recipe_needs_one_file(tmp_path: Path) -> None:
    code = "import sys; from pixelkiln.core.catalog import find; find('pca'); print(*[m for m in sys.modules if m.startswith('pixelkiln.methods.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pixelkiln.methods.pca"]


def test_the_package_gives_what_it_says() -> None:
    assert set(dir(pixelkiln)) == set(pixelkiln.__all__)
    from pixelkiln.engine.train import train

    assert pixelkiln.train is train
    with pytest.raises(AttributeError, match="paint"):
        _ = pixelkiln.paint


def test_sampling_imports_nothing_that_it_does_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither readers of Parquet nor scikit-learn (the embedded digits) are needed to draw from a run."""
    monkeypatch.setenv("PIXELKILN_CACHE", str(tmp_path / "cache"))
    train(Order("pca", "digits", tmp_path / "r", "tiny"), Where("cpu", "fp32", False, torch.get_num_threads()), log=Log(quiet=True))
    status, used, _ = heavy(tmp_path / "cache", "sample", str(tmp_path / "r"), "-n", "4", "--out", str(tmp_path / "a.png"), "--precision", "fp32", "--layout", "contiguous", "--quiet")
    assert status == 0
    assert set(used) <= {"torch", "numpy", "PIL", "safetensors"}
