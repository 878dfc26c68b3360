"""Our solvers beside diffusers' schedulers: the same levels, the same nonlinear "network", the same noise; the largest difference of x, divided by 1 + s.

    python benchmarks/peers/solver_parity.py        with a Python that has diffusers

Steps are compared in variance-exploding coordinates, at the level in the last column: before the last step, to 0, where a scheduler has
another last step. diffusers computes in float32. After the table: where its numbers are not those of the papers, and by how much.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from pixelkiln.solvers import SOLVERS, ddim, ddpm
from pixelkiln.solvers import multistep as ms

XT = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Z = torch.randn(64, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
MULTISTEP = {**SCHEDULE, "timestep_spacing": "trailing"}


def alpha(s: float) -> float:
    return (1 + s * s) ** -0.5


def data(x: Tensor, s: float) -> Tensor:
    """x0 predicted from variance-preserving x at the level s."""
    return torch.sin(1.3 * x.double() + 0.2 * math.log(s))


def denoise(x: Tensor, s: float) -> Tensor:
    return data(alpha(s) * x, s)


def states(run: Callable[..., Tensor], x: Tensor, levels: list[float], **options: Any) -> dict[float, Tensor]:
    """Ours: the x at which D was asked for, by level, and the result at 0."""
    seen: dict[float, Tensor] = {}

    def kept(x: Tensor, s: float) -> Tensor:
        seen[s] = x
        return denoise(x, s)

    draws = iter(Z)
    seen[0.0] = run(kept, x, torch.tensor(levels, dtype=torch.float64), noise=lambda: next(draws), **options)
    return seen


def theirs(scheduler: Any, n: int, ve: bool, more: Callable[[int], dict[str, Any]] = lambda i: {}, edm: bool = False) -> tuple[list[float], list[Tensor]]:
    """diffusers: levels (with the 0), and x in variance-exploding coordinates at each."""
    scheduler.set_timesteps(n)
    s = [float(v) for v in scheduler.sigmas]
    x = XT * s[0] if ve else XT * s[0] * alpha(s[0])
    out = [XT * s[0]]
    for i, t in enumerate(scheduler.timesteps):
        now = x.double() if ve else x.double() / alpha(s[i])
        D = denoise(now, s[i])
        if edm:
            skip, part = 0.25 / (0.25 + s[i] ** 2), 0.5 * s[i] / (0.25 + s[i] ** 2) ** 0.5
            answer = (D - skip * now) / part
            scheduler.scale_model_input(x, t)
        elif ve:
            answer = (now - D) / s[i]
            scheduler.scale_model_input(x, t)
        else:
            answer = (now - D) / s[i]
        x = scheduler.step(answer, t, x, return_dict=False, **more(i))[0]
        out.append(x.double() if ve else x.double() / alpha(s[i + 1]))
    return s, out


def row(name: str, ours: Tensor, other: Tensor, at: float) -> None:
    print(f"{name:44s} {float((ours - other).abs().max()) / (1 + at):9.1e}   s = {at:.3g}", flush=True)


def along(name: str, run: Callable[..., Tensor], scheduler: Any, n: int, ve: bool = False, last: int = -1, edm: bool = False, **options: Any) -> None:
    s, out = theirs(scheduler, n, ve, edm=edm)
    row(name, states(run, out[0], s, **options)[s[last]], out[last], s[last])


def table_of_betas() -> None:
    """DDIM and DDPM, whose levels are those of their table."""
    for n in (10, 13):
        for eta in (0.0, 1.0):
            sch = diffusers.DDIMScheduler(**MULTISTEP, clip_sample=False)
            sch.set_timesteps(n)
            abar = sch.alphas_cumprod.double()
            levels = [float(((1 - abar[t]) / abar[t]).sqrt()) for t in sch.timesteps] + [0.0]
            x, draws = XT * levels[0] * alpha(levels[0]), iter(Z)
            for i, t in enumerate(sch.timesteps):
                eps = (x.double() / alpha(levels[i]) - denoise(x.double() / alpha(levels[i]), levels[i])) / levels[i]
                noise = next(draws) if eta and i < n - 1 else torch.zeros_like(x)
                x = sch.step(eps, t, x, eta=eta, variance_noise=noise if eta else None, return_dict=False)[0]
            row(f"DDIM, trailing, N = {n}, eta = {eta:g}", states(ddim, XT * levels[0], levels, eta=eta)[0.0], x.double(), 0)
    for variance in ("small", "large"):
        sch = diffusers.DDPMScheduler(**MULTISTEP, clip_sample=False, variance_type=f"fixed_{variance}")
        sch.set_timesteps(10)
        abar = sch.alphas_cumprod.double()
        levels = [float(((1 - abar[t]) / abar[t]).sqrt()) for t in sch.timesteps] + [0.0]
        x, draws = XT * levels[0] * alpha(levels[0]), iter(Z)
        original = diffusers.schedulers.scheduling_ddpm.randn_tensor
        diffusers.schedulers.scheduling_ddpm.randn_tensor = lambda *a, draws=draws, **k: next(draws)
        before = x
        for i, t in enumerate(sch.timesteps):
            before = x.double() / alpha(levels[i])
            x = sch.step((before - denoise(before, levels[i])) / levels[i], t, x, return_dict=False)[0]
        diffusers.schedulers.scheduling_ddpm.randn_tensor = original
        ours = states(partial(ddpm, variance=variance), XT * levels[0], levels)
        row(f"DDPM, fixed {variance}, before the last step", ours[levels[-2]], before, levels[-2])
        row(f"DDPM, fixed {variance}", ours[0.0], x.double(), 0)


def by_levels() -> None:
    d = diffusers
    for n in (10, 20):
        for order in (1, 2, 3):
            sch = d.UniPCMultistepScheduler(**MULTISTEP, solver_order=order, solver_type="bh2", final_sigmas_type="zero")
            along(f"UniPC, order {order}, bh2, N = {n}", SOLVERS["unipc" if order == 3 else f"unipc-{order}"].run, sch, n)
        sch = d.UniPCMultistepScheduler(**MULTISTEP, solver_order=3, solver_type="bh2", final_sigmas_type="zero")
        along(f"UniPC, order 3, bh2, N = {n}, two steps earlier", SOLVERS["unipc"].run, sch, n, last=-3)
        sch = d.DPMSolverMultistepScheduler(**MULTISTEP, solver_order=2, final_sigmas_type="zero")
        along(f"DPM-Solver++(2M), N = {n}", SOLVERS["dpmpp-2m"].run, sch, n)
        sch = d.DPMSolverMultistepScheduler(**MULTISTEP, solver_order=3, final_sigmas_type="zero")
        along(f"DPM-Solver++(3M), N = {n}", SOLVERS["dpmpp-3m"].run, sch, n)
        along(f"Euler, N = {n}", SOLVERS["euler"].run, d.EulerDiscreteScheduler(**MULTISTEP), n, ve=True)
        along(f"EDM Euler, N = {n}", SOLVERS["euler"].run, d.EDMEulerScheduler(), n, ve=True, edm=True)
        along(f"EDM DPM-Solver++(2M), N = {n}", SOLVERS["dpmpp-2m"].run, d.EDMDPMSolverMultistepScheduler(), n, ve=True, edm=True)
    sch = d.DEISMultistepScheduler(**MULTISTEP, solver_order=3)
    s, out = theirs(sch, 16, False)
    log_rho = partial(ms._adams, clock=np.log)
    row("DEIS with a line in log rho, two steps", states(log_rho, out[0], [*s[:-1], 0.0])[s[2]], out[2], s[2])
    row("DEIS with a parabola in log rho, three steps", states(log_rho, out[0], [*s[:-1], 0.0])[s[3]], out[3], s[3])
    row("DEIS, tAB3 of the paper, three steps", states(SOLVERS["deis"].run, out[0], [*s[:-1], 0.0])[s[3]], out[3], s[3])
    sch = d.DPMSolverMultistepScheduler(**MULTISTEP, solver_order=2, algorithm_type="sde-dpmsolver++", final_sigmas_type="zero")
    s, out = theirs(sch, 20, False, lambda i: {"variance_noise": Z[i].float()})
    row("SDE-DPM-Solver++(2M)", states(SOLVERS["dpmpp-2m-sde"].run, out[0], s)[0.0], out[-1], 0)
    sch = d.DPMSolverSinglestepScheduler(**SCHEDULE, solver_order=2, use_exponential_sigmas=True, final_sigmas_type="zero")
    s, out = theirs(sch, 20, False)
    row("DPM-Solver++(2S), every other level", states(SOLVERS["dpmpp-2s"].run, out[0], [*s[0:19:2], 0.0])[s[18]], out[18], s[18])
    sch = d.DPMSolverSinglestepScheduler(**SCHEDULE, solver_order=3, use_exponential_sigmas=True, final_sigmas_type="zero")
    s, out = theirs(sch, 19, False)
    row("DPM-Solver++(3S), every third level", states(SOLVERS["dpmpp-3s"].run, out[0], [*s[0:19:3], 0.0])[s[18]], out[18], s[18])
    row("the same, second stage by the midpoint rule", states(midpoint_3s, out[0], [*s[0:19:3], 0.0])[s[18]], out[18], s[18])
    heun()


def midpoint_3s(denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: Tensor, *, noise: object) -> Tensor:
    """DPM-Solver++(3S) with (1 - e^(-2h/3)) (D_1 - D) in the second stage, where the paper has 2 F(2/3) (D_1 - D)."""
    s = sigmas.tolist()
    for a, b in zip(s[:-2], s[1:-1], strict=True):
        h, D = math.log(a / b), denoise(x, a)
        near, far = a * math.exp(-h / 3), a * math.exp(-2 * h / 3)
        D_1 = denoise(D + near / a * (x - D), near)
        D_2 = denoise(D + far / a * (x - D) + (1 - far / a) * (D_1 - D), far)
        x = D + b / a * (x - D) + 1.5 * (1 + math.expm1(-h) / h) * (D_2 - D)
    return denoise(x, s[-2])


def heun() -> None:
    """diffusers' Heun is called twice a step."""
    sch = diffusers.HeunDiscreteScheduler(**MULTISTEP)
    sch.set_timesteps(10)
    s = [float(v) for v in sch.sigmas]
    x, levels = XT * s[0], sorted({*s}, reverse=True)
    for t, now in zip(sch.timesteps, s[:-1], strict=True):
        sch.scale_model_input(x, t)
        x = sch.step((x.double() - denoise(x, now)) / now, t, x, return_dict=False)[0]
    row("Heun, N = 10", states(SOLVERS["heun"].run, XT * s[0], levels)[0.0], x.double(), 0)


def third_order(double: bool, n: int) -> float:
    """Error at the level 0.05 of DPM-Solver++(3M) by diffusers' own update in float64, on Gaussian data, graded levels; D2 doubled or not."""
    sch = diffusers.DPMSolverMultistepScheduler(**SCHEDULE, solver_order=3)
    sch.set_timesteps(n)
    share = torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 2
    s = torch.exp(math.log(20.0) + share * math.log(0.05 / 20))
    sch.sigmas = s
    var, x, past = 0.3, torch.ones(1, dtype=torch.float64), []
    a = (1 + s**2).rsqrt()
    for i in range(n):
        past.append(var / (var + s[i] ** 2) * x)
        sch._step_index, y = i, a[i] * x
        if i == 0:
            y = sch.dpm_solver_first_order_update(past[-1], sample=y)
        elif i == 1:
            y = sch.multistep_dpm_solver_second_order_update(past[-2:], sample=y)
        else:
            y = sch.multistep_dpm_solver_third_order_update(past[-3:], sample=y)
            if double:
                lam = -s.log()
                h, h0, h1 = lam[i + 1] - lam[i], lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
                D2 = ((past[-1] - past[-2]) * h / h0 - (past[-2] - past[-3]) * h / h1) / ((h0 + h1) / h)
                y = y - a[i + 1] * ((torch.exp(-h) - 1 + h) / h**2 - 0.5) * D2
        x = y / a[i + 1]
    exact = ((var + s[-1] ** 2) / (var + s[0] ** 2)).sqrt()
    return float((x - exact).abs())


def defects() -> None:
    print("\nOrder of DPM-Solver++(3M), log2 of the error's ratio at 64/128 and 128/256 steps:")
    for name, double in (("as it is", False), ("with the second derivative's factor 2", True)):
        e = [third_order(double, n) for n in (64, 128, 256)]
        print(f"  {name:40s} {math.log2(e[0] / e[1]):.2f} {math.log2(e[1] / e[2]):.2f}   error at 256: {e[2]:.1e}")
    sch = diffusers.DDIMScheduler(**MULTISTEP)
    sch.set_timesteps(13)
    t = [int(v) for v in sch.timesteps]
    off = sum(a - 1000 // 13 != b for a, b in zip(t, [*t[1:], -1], strict=True))
    last = t[-1] - 1000 // 13
    print(f"DDIM, trailing, N = 13: {off} of 13 steps go to another time than the next of the list; the last to {last}, not -1")
    sch = diffusers.DDPMScheduler(**MULTISTEP, variance_type="fixed_large_log")
    sch.set_timesteps(10)
    print(f"DDPM fixed_large_log: std^2 = {float(sch._get_variance(int(sch.timesteps[3]))):.3g} is a logarithm; its root is {float(sch._get_variance(int(sch.timesteps[3])) ** 0.5)}")
    for spacing in ("leading", "linspace", "trailing"):
        sch = diffusers.DDIMScheduler(**SCHEDULE, timestep_spacing=spacing)
        sch.set_timesteps(30)
        print(f"{spacing}, N = 30: starts at time {int(sch.timesteps[0])} of 999")
    short = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule="linear")
    print(f"linear betas, T = 100, not rescaled: alpha_bar at the end = {float(short.alphas_cumprod[-1]):.3f}")
    many = diffusers.DPMSolverMultistepScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    try:
        many.set_timesteps(30)
        print(f"DPM-Solver++, cosine, Karras levels, N = 30: {30 - len(set(many.timesteps.tolist()))} of 30 times are duplicates")
    except (ValueError, IndexError) as error:
        print(f"DPM-Solver++, cosine, Karras levels, N = 30: {type(error).__name__}: {error}")


def main() -> None:
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}\n{'':44s} {'largest':>9s}")
    table_of_betas()
    by_levels()
    defects()


if __name__ == "__main__":
    main()
