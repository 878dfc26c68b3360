"""The programs and files beside the library: they start, they parse, and the pages show the newest results."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted(p for p in (ROOT / "benchmarks").glob("*.py") if "__main__" in p.read_text())
SHELL = [*sorted((ROOT / "benchmarks").glob("*.sh")), *sorted((ROOT / "docs" / "launch").glob("*.sbatch"))]
HELP = """
import contextlib, io, runpy, sys, traceback
for path in sys.argv[1:]:
    sys.argv, said = [path, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(path, run_name="__main__")
        print(path, "no status")
    except SystemExit as e:
        print(path, e.code or 0, "usage:" in said.getvalue())
    except ModuleNotFoundError as e:
        print(path, "absent", e.name)
    except Exception:
        print(path, traceback.format_exc().splitlines()[-1])
"""


@pytest.fixture(scope="module")
def helped() -> dict[str, str]:
    """What each program of benchmarks/ did when asked for --help, all in one process."""
    path = os.pathsep.join(map(str, (ROOT / "benchmarks", ROOT / "benchmarks" / "peers", ROOT / "src")))
    found = subprocess.run([sys.executable, "-c", HELP, *map(str, PROGRAMS)], capture_output=True, text=True, check=True, timeout=300, env=os.environ | {"PYTHONPATH": path})
    return dict(line.split(" ", 1) for line in found.stdout.splitlines())


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_programs_answer_help(helped: dict[str, str], program: Path) -> None:
    said = helped[str(program)]
    if said.startswith("absent"):
        pytest.skip(f"needs {said.split()[1]}")
    assert said == "0 True"


@pytest.mark.parametrize("script", SHELL, ids=lambda p: p.name)
def test_shell_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_a_job_is_queued_again_only_if_a_checkpoint_was_made(tmp_path: Path) -> None:
    """The Slurm file with stand-ins for Slurm's programs."""
    said, run = tmp_path / "said", tmp_path / "run"
    for name, does in {"srun": 'eval "$DOES"; exit 1', "scontrol": f'echo "$@" >> {said}'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_NODELIST": "a", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7"}

    def start(does: str) -> int:
        return subprocess.run(["bash", SHELL[-1], "ddpm", "--out", run], env=env | {"DOES": does}, check=False).returncode

    assert start("true") == 1
    assert "requeue" not in said.read_text()
    assert start(f"mkdir -p {run}/checkpoints/step-00000020") == 1
    assert said.read_text().count("requeue 7") == 1
    assert start("true") == 1
    assert said.read_text().count("requeue 7") == 1, "a start that saved nothing is the last one"


def test_the_kubernetes_file_parses(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((ROOT / "docs" / "launch" / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    script = re.sub("/runs/cifar", str(tmp_path / "run"), container["args"][0])
    (tmp_path / "torchrun").write_text('#!/bin/sh\neval "$DOES"\n')
    (tmp_path / "torchrun").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    made = f"mkdir -p {tmp_path}/run/checkpoints/step-00000020; exit 1"
    for does, status in (("exit 0", 0), ("exit 1", 42), (made, 1), (made, 42)):
        assert subprocess.run([*container["command"], script], env=env | {"DOES": does}, check=False).returncode == status


def test_pages_show_the_newest_results() -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], check=True)


def test_a_share_of_a_product_without_a_fast_way_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    program = {"precision": "bf16", "bf16_gflops": 1, "fp32_gflops": 100, "share": 6.9}
    assert tables.percent(program, ".1%") == "–"
    assert tables.percent(program | {"bf16_gflops": 900, "share": 0.19}, ".1%") == tables.percent({"precision": "fp32", "bf16_gflops": 1, "fp32_gflops": 100, "share": 0.19}, ".1%") == "19.0%"
