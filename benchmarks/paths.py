"""The picture of docs/processes.md: the log signal-to-noise ratio of every path over its time. A second, on any machine.

    python benchmarks/paths.py [--out docs/pictures/paths.svg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pixelkiln.engine.plots import plot
from pixelkiln.processes import PATHS

POINTS = 41


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the log-SNR of every path.")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/paths.svg"))
    args = parser.parse_args()
    lines = {}
    for name, make in PATHS.items():
        path = make()
        t = torch.linspace(path.t_min, path.t_top, POINTS, dtype=torch.float64)
        lines[name] = list(zip(t.tolist(), path.log_snr(t).tolist(), strict=True))
        print(f"{name:16} s {path.s_min:8.5f} .. {path.s_max:9.2f}   log SNR {lines[name][0][1]:6.2f} .. {lines[name][-1][1]:6.2f}")
    args.out.write_text(plot("log SNR of every path", lines, "t"), encoding="utf-8")


if __name__ == "__main__":
    main()
