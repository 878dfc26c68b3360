"""The command line as a person types it, mistakes included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import pixelkiln
from pixelkiln.core.images import read_image, to_uint8
from pixelkiln.core.runs import Run
from pixelkiln.data import open_source
from pixelkiln.engine.sample import load
from pixelkiln.engine.scores import DEFAULT, METRICS

TINY = ["--size", "tiny", "--quiet", "--precision", "fp32"]



def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake may print."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("pixelkiln: ")
    return lines[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of each kind."""
    base = tmp_path_factory.mktemp("runs")
    os.environ["PIXELKILN_CACHE"] = str(base / "cache")
    for name, steps in (("ddpm", 20), ("vae", 20), ("pca", 1)):
        assert pixelkiln("train", name, "--data", "digits", "--out", base / name, "--steps", steps, *TINY) == 0
    assert pixelkiln("train", "sdedit", "--parent", f"base={base / 'ddpm'}", "--out", base / "sdedit", *TINY) == 0
    yield base
    del os.environ["PIXELKILN_CACHE"]


def test_a_run_folder_holds_what_the_design_says(runs: Path) -> None:
    for name in ("ddpm", "vae", "pca", "sdedit"):
        held = {p.name for p in (runs / name).iterdir()}
        assert {"recipe.json", "checkpoints", "report.html"} <= held, name
    assert (runs / "ddpm" / "metrics.jsonl").exists()
    assert len(list((runs / "ddpm" / "samples").glob("*.png"))) == 10
    facts = json.loads((runs / "ddpm" / "recipe.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["total"] == 20


def test_resuming_needs_the_folder_only(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ddpm", "sdedit"):
        assert pixelkiln("train", "--resume", "--out", runs / name, "--precision", "fp32") == 0
        assert "is complete" in capsys.readouterr().err
    assert pixelkiln("train", "ddpm", "--data", "digits", "--out", runs / "ddpm", "--steps", 30, "--resume", *TINY) == 2
    assert "another budget" in error_line(capsys)


def test_nothing_written_is_a_pickle(runs: Path) -> None:
    allowed = {".json", ".jsonl", ".safetensors", ".png", ".html"}
    assert {p.suffix for p in runs.rglob("*") if p.is_file()} <= allowed


def test_sample_as_grid_folder_and_arrays(runs: Path, tmp_path: Path) -> None:
    run = runs / "ddpm"
    assert pixelkiln("sample", run, "--out", tmp_path / "g.png", "-n", 20, "--label", "all", "--steps", 3, "--quiet") == 0
    assert read_image(tmp_path / "g.png").shape[0] == 1
    assert pixelkiln("sample", run, "--out", tmp_path / "s.npz", "-n", 6, "--label", "3,7", "--steps", 3, "--quiet") == 0
    with np.load(tmp_path / "s.npz", allow_pickle=False) as f:
        assert f["images"].shape == (6, 16, 16, 1)
        assert f["images"].dtype == np.uint8
        assert f["labels"].tolist() == [3, 7, 3, 7, 3, 7]
    assert pixelkiln("sample", run, "--out", tmp_path / "d", "-n", 2, "--label", "5", "--steps", 3, "--quiet") == 0
    assert len(list((tmp_path / "d" / "5").glob("*.png"))) == 2


def test_the_same_seed_gives_the_same_images_in_any_batch(runs: Path, tmp_path: Path) -> None:
    for name, batch in (("a", 2), ("b", 5)):
        args = ("-n", 5, "--batch", batch, "--steps", 4, "--seed", 8, "--quiet", "--precision", "fp32")
        assert pixelkiln("sample", runs / "ddpm", "--out", tmp_path / f"{name}.npz", *args) == 0
    a, b = (np.load(tmp_path / f"{n}.npz", allow_pickle=False) for n in "ab")
    assert (a["labels"] == b["labels"]).all()
    assert np.abs(a["images"].astype(int) - b["images"].astype(int)).max() <= 1


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp-2m", "euler", "heun"])
def test_every_solver_from_the_command_line(runs: Path, tmp_path: Path, solver: str) -> None:
    args = ("-n", 2, "--steps", 2, "--solver", solver, "--guidance", 2, "--label", "1", "--quiet")
    assert pixelkiln("sample", runs / "ddpm", "--out", tmp_path / "s.png", *args) == 0


def test_interpolate_between_seeds_and_between_images(runs: Path, tmp_path: Path) -> None:
    assert pixelkiln("interpolate", runs / "ddpm", "--out", tmp_path / "w.png", "--label", "2", "--frames", 4, "--quiet") == 0
    assert pixelkiln("interpolate", runs / "vae", "--out", tmp_path / "w.gif", "--frames", 4, "--quiet") == 0
    assert (tmp_path / "w.gif").read_bytes()[:3] == b"GIF"
    assert pixelkiln("sample", runs / "vae", "--out", tmp_path / "two", "-n", 2, "--quiet") == 0
    a, b = sorted((tmp_path / "two").glob("*.png"))
    assert pixelkiln("interpolate", runs / "vae", "--images", a, b, "--out", tmp_path / "i.png", "--frames", 3, "--quiet") == 0


def test_edit_from_a_source(runs: Path, tmp_path: Path) -> None:
    assert pixelkiln("sample", runs / "vae", "--out", tmp_path / "one", "-n", 1, "--quiet") == 0
    source = next((tmp_path / "one").glob("*.png"))
    args = ("--source", source, "--strength", 0.4, "--steps", 3, "-n", 3, "--quiet")
    assert pixelkiln("sample", runs / "sdedit", "--out", tmp_path / "e.npz", *args) == 0
    with np.load(tmp_path / "e.npz", allow_pickle=False) as f:
        assert f["images"].shape == (3, 16, 16, 1)


def test_evaluate_a_run_and_its_samples(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pixelkiln("evaluate", runs / "ddpm", "-n", 60, "--steps", 3, "--json", tmp_path / "e.json", "--quiet") == 0
    printed = capsys.readouterr().out
    assert "fd" in printed
    assert "FID" not in printed
    assert "reference: digits train" in printed
    scores = json.loads((tmp_path / "e.json").read_text())
    assert {m["name"] for m in scores["metrics"]} == set(DEFAULT)
    assert all(m["floor"] is not None and m["protocol"]["seed"] == 0 for m in scores["metrics"])
    assert "coverage" in (runs / "ddpm" / "report.html").read_text()
    assert pixelkiln("sample", runs / "ddpm", "--out", tmp_path / "s.npz", "-n", 60, "--steps", 3, "--quiet") == 0
    assert pixelkiln("evaluate", tmp_path / "s.npz", "--data", "digits", "--metrics", "fd,accuracy", "--quiet") == 0


@pytest.mark.parametrize("name", ["vae", "pca", "ddpm"])
def test_evaluate_gives_a_likelihood_where_there_is_one(runs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pixelkiln("evaluate", runs / name, "-n", 40, "--iw", 5, "--json", tmp_path / "e.json", "--quiet") == 0
    found = json.loads((tmp_path / "e.json").read_text())["likelihood"]
    scores, _, rest = capsys.readouterr().out.partition("likelihood of the test images:")
    assert "  N: 40\n" in scores, "the number of samples, not of images whose likelihood was taken"
    assert f"  N: {found['N']}\n" in rest
    assert np.isfinite(found["nats"])
    assert found["of"]
    assert found["kind"]


def test_evaluate_reconstructions_edits_and_paths(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pairs: reconstructions of a method that encodes, edits beside their sources; paths where there is a latent space."""

    def scores(run: str, names: str, *more: object) -> dict[str, dict[str, object]]:
        args = ("--metrics", names, "-n", 24, "--json", tmp_path / "e.json", "--quiet", *more)
        assert pixelkiln("evaluate", runs / run, *args) == 0
        return {m["name"]: m for m in json.loads((tmp_path / "e.json").read_text())["metrics"]}

    found = scores("vae", "psnr,pd,ppl", "--precision", "fp32")
    assert set(found) == {"psnr", "pd", "ppl"}
    assert found["psnr"]["value"] > 8
    assert found["pd"]["value"] > 0
    assert found["ppl"]["value"] > 0
    run = load(runs / "vae", precision="fp32")
    test = open_source("digits", run.opened.stage.data, "test").images[:24]
    back = to_uint8(run.method.decode(run.method.encode(test.float() / 127.5 - 1)).detach().clamp(-1, 1))  # type: ignore[attr-defined, operator]
    mse = (back.double() - test.double()).square().flatten(1).mean(1)
    assert found["psnr"]["value"] == pytest.approx(float((10 * torch.log10(255**2 / mse)).mean()), rel=1e-3)
    edits = scores("sdedit", "ssim,ms-ssim,fd", "--strength", 0.4, "--steps", 3)
    assert 0 < edits["ssim"]["value"] < 1
    assert edits["ms-ssim"]["protocol"]["scales"] == 1  # of 16 pixels
    assert edits["ms-ssim"]["value"] == pytest.approx(edits["ssim"]["value"], abs=0.05)  # but for images below 0
    assert edits["ssim"]["protocol"]["of"] == "edits, beside their sources"
    assert edits["fd"]["protocol"]["N"] == 24
    assert pixelkiln("evaluate", runs / "vae", "--metrics", "ssim", "-n", 6, "--quiet") == 2  # 8 pixels
    assert "at least 11 pixels" in capsys.readouterr().err
    for name, run_name, missing in (("psnr", "ddpm", "neither encodes"), ("ppl", "sdedit", "no latent space")):
        assert pixelkiln("evaluate", runs / run_name, "--metrics", name, "-n", 6, "--quiet") == 2
        assert missing in capsys.readouterr().err


def test_evaluate_help_lists_every_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert pixelkiln("evaluate", "--help") == 0
    printed = capsys.readouterr().out.splitlines()
    for name in METRICS:
        (line,) = [row for row in printed if row.startswith(f"  * {name} ") or row.startswith(f"    {name} ")]
        assert ("*" in line) == (name in DEFAULT)
    assert pixelkiln("evaluate", "x.npz", "--data", "digits", "--metrics", "fdd") == 2
    assert "did you mean fd" in capsys.readouterr().err


def test_show_and_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pixelkiln("show", runs / "ddpm") == 0
    shown = capsys.readouterr().out
    assert "loss" in shown
    assert "Ho, Jain, Abbeel" in shown
    assert pixelkiln("list", "--json") == 0
    names = [r["recipe"] for r in json.loads(capsys.readouterr().out)]
    assert {"dcgan", "ddpm", "pca", "sdedit", "vae", "vae-mlp"} <= set(names)
    assert pixelkiln("list", "--family", "diffusion") == 0
    assert "vae" not in capsys.readouterr().out


def test_help_is_complete_and_typed(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("list", "train", "sample", "interpolate", "traverse", "arithmetic", "reconstruct", "embed", "evaluate", "show"):
        assert pixelkiln(verb, "--help") == 0
        assert "usage: pixelkiln" in capsys.readouterr().out
    assert pixelkiln("train", "ddpm", "--help") == 0
    text = capsys.readouterr().out
    assert "--model.net.width INT" in text
    assert "eps|x0|v" in text
    assert "--train.opts.main.lr FLOAT" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("paint",), "unknown"),
        (("train", "dpm", "--data", "digits", "--out", "x"), "did you mean ddpm"),
        (("train", "ddpm", "--data", "digits"), "--out"),
        (("train", "ddpm", "--out", "x"), "--data"),
        (("train", "--data", "digits", "--out", "x"), "which recipe"),
        (("train", "ddpm", "--data", "nowhere", "--out", "x"), "nowhere"),
        (("train", "ddpm", "--data", "digit", "--out", "x"), "digits"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--budget", "soon"), "10m"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--steps", "0"), "above 0"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--model.net.widht", "3"), "did you mean"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--model.predict", "noise"), "eps"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--sise", "tiny"), "--size"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--size", "tiny", "--model.predict", "eps", "--model.schedule", "linear-zero-snr"), "pure noise"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--data.resolution", "17", "--size", "tiny", "--data.multiple", "1"), "multiple"),
        (("train", "sdedit", "--data", "digits", "--out", "x"), "--parent base=RUN"),
        (("train", "no_such_file.py:recipe", "--data", "digits", "--out", "x"), "no such file"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--device", "tpu9"), "--device"),
        (("train", "ddpm", "--data", "digits", "--out", "x", "--train.batch", "30", "--train.accumulate", "4"), "does not divide"),
        (("train", "flow", "--data", "digits", "--out", "x", "--size", "tiny", "--train.opts.main.kind", "muon", "--train.opts.main.adam", "net.hed"), "is no part of the nets"),
        (("sample", "nowhere", "--out", "g.png"), "no such run"),
        (("sample", ".", "--out", "g.jpeg"), ".png"),
        (("evaluate", "nowhere.npz", "--data", "digits"), "nowhere.npz"),
        (("evaluate", "nowhere.npz"), "--data"),
        (("list", "--family", "gans"), "did you mean gan"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert pixelkiln(*words) == 2
    assert says in error_line(capsys)
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--label", "11"), "0 to 9"),
        (("--label", "seven"), "no such class"),
        (("--solver", "ddmp"), "did you mean ddpm"),
        (("--strength", "0.5"), "does not take 'strength'"),
        (("--text", "a dog"), "does not take 'text'"),
        (("--solver", "heun", "--eta", "1"), "eta"),
        (("--solver", "ddim", "--churn", "1"), "churn"),
        (("--solver", "heun", "--churn", "-3"), "from 0"),
        (("--guidance", "nan"), "guidance nan"),
        (("--guidance", "2", "--rescale", "2"), "rescale 2.0"),
        (("--threshold", "0"), "threshold 0.0"),
        (("--interval", "3,1"), "LO < HI"),
        (("--spacing", "karas"), "did you mean karras"),
    ],
)
def test_a_sampling_mistake_is_one_line(runs: Path, args: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pixelkiln("sample", runs / "ddpm", "--out", tmp_path / "g.png", "-n", 2, "--quiet", *args) == 2
    assert says in error_line(capsys)
    assert not (tmp_path / "g.png").exists()


def test_a_foreign_checkpoint_is_refused_with_the_reason(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK")
    for verb in (("sample", tmp_path / "model.pt", "--out", tmp_path / "a.png"), ("show", tmp_path / "model.pt"),
                 ("evaluate", tmp_path / "model.pt", "--data", "digits")):
        assert pixelkiln(*verb) == 2
        assert "pickle" in error_line(capsys)


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "pixelkiln", "train", "dcgan", "--data", "digits", "--out", str(out), "--size", "tiny", "--steps", "40",
            "--train.save_every", "5", "--train.log_every", "5", "--precision", "fp32", "--quiet", *more]


def weights(out: Path) -> dict[str, torch.Tensor]:
    point = Run(out).checkpoint()
    assert point.step == 40
    return {f"{g}/{k}": v for g in ("weights", "average", "optim") for k, v in point.tensors(g).items()}


def curves(out: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s", "idle")} for r in Run(out).records()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    subprocess.run(command(out), check=True, env=environment())
    return out


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}  # two threads on a busy machine do not always round alike (docs/LOG.md)


def same(a: Path, b: Path) -> None:
    wa, wb = weights(a), weights(b)
    assert wa.keys() == wb.keys()
    assert all(torch.equal(wa[k], wb[k]) for k in wa)
    assert curves(a) == curves(b)


def test_kill_9_at_random_moments_and_resume(unbroken: Path, tmp_path: Path) -> None:
    """Killed again and again, at any moment, the run ends with the very weights and curves of one that was left alone."""
    out, kills = tmp_path / "run", 0
    rng = np.random.default_rng(int(time.time()))
    process = subprocess.Popen(command(out), env=environment())
    while kills < 3:
        while process.poll() is None and not list(out.glob(f"checkpoints/*{5 * (kills + 1):02d}*")):
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
        process = subprocess.Popen(command(out, "--resume"), env=environment())
    assert process.wait() == 0
    assert kills >= 1, "it was never killed: the test has shown nothing"
    same(out, unbroken)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_signal_saves_the_step_and_says_how_to_go_on(unbroken: Path, tmp_path: Path, signum: int, status: int) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(out, "--train.save_every", "1000"), env=environment(), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signum)
    _, said = process.communicate()
    assert process.returncode == status, said
    assert "--resume" in said
    assert Run(out).checkpoint().step < 40
    subprocess.run(command(out, "--train.save_every", "1000", "--resume"), check=True, env=environment())
    same(out, unbroken)
