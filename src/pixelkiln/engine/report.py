"""report.html of a run: one self-contained page with its style, pictures and curves inside; no scripts, no links; for any screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Real
from typing import Any

from pixelkiln.core.types import UserError

from .accuracy import accuracy_panel
from .charts import COLORS, bars, chart, number
from .neighbors import neighbors_panel
from .panels import (
    Panel,
    ReportContext,
    bits_panel,
    edits_panel,
    history_panel,
    reconstructions_panel,
    samples_panel,
    strip_panel,
    undisturbed,
    walk_panel,
)

__all__ = ["ReportContext", "build_report", "curves_panel", "header", "metrics_panel"]

BOOKKEEPING = frozenset({"step", "total", "images", "time", "seconds", "elapsed", "rollback", "rollbacks", "lr_factor"})  # fields of a record that are not curves
LAST = ("lr", "images_per_s", "idle")  # curves about speed and schedule come after those about learning
UNITS = {"images_per_s": "images/s", "bits_per_dim": "bits/dim", "bpd": "bits/dim", "nats": "nats", "kl": "nats", "layer_kl": "nats", "step_seconds": "s"}

STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf8;--fg:#1d1d1f;--soft:#6a6a70;--rule:#dddad4;--card:#fff;--mark:#b5451b;
--c0:#b5451b;--c1:#2463a8;--c2:#3c8045;--c3:#8a4f9e;--c4:#8a6d0b}
@media(prefers-color-scheme:dark){:root{--bg:#161618;--fg:#e9e7e3;--soft:#a09fa5;--rule:#38383c;--card:#202023;--mark:#f08a5d;
--c0:#f08a5d;--c1:#6fb1f5;--c2:#7fce8a;--c3:#cf9be2;--c4:#dcc05c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1rem;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
h1{margin:.5rem 0 0;line-height:1.2}h2{margin:2.2rem 0 .6rem;border-bottom:1px solid var(--rule);font-size:1.2rem}
.note,figcaption,small,.paper{color:var(--soft);font-size:.86rem}.paper{margin:.2rem 0 1rem}
figure{margin:.4rem 0;min-width:0}img{max-width:100%;height:auto;image-rendering:pixelated;background:#fff;display:block}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.5rem 1.2rem;margin:1rem 0}
dt{color:var(--soft);font-size:.8rem}dd{margin:0;overflow-wrap:anywhere}
pre{margin:.6rem 0;padding:.7rem;background:var(--card);border:1px solid var(--rule);white-space:pre-wrap;overflow-wrap:anywhere}
.charts,.tiles,.cards{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr))}
.tiles{grid-template-columns:repeat(auto-fill,minmax(min(15rem,47%),1fr))}
.chart,.card{background:var(--card);border:1px solid var(--rule);padding:.6rem;margin:0}
.card{display:flex;gap:.6rem;align-items:start}.card figure{flex:1;margin:0}.card img{width:100%}.card figcaption{font-size:.75rem}
svg{display:block;width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}.rule{stroke:var(--rule)}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}.raw{stroke-width:1;opacity:.3}.chart figcaption b{color:var(--fg)}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}.dot{fill:currentColor}
.chart figcaption{display:flex;flex-wrap:wrap;gap:0 .5rem;align-items:baseline;margin-bottom:.3rem}
.legend{margin-left:auto}.legend span{margin-left:.7rem;color:var(--fg)}
.key{display:inline-block;width:.8em;height:.2em;margin:0 .35em .25em 0}
.k0{background:var(--c0)}.k1{background:var(--c1)}.k2{background:var(--c2)}.k3{background:var(--c3)}.k4{background:var(--c4)}
table{border-collapse:collapse}.wide{overflow-x:auto}th,td{padding:.25rem .8rem .25rem 0;text-align:left;vertical-align:middle}
.values td,.values th{border-bottom:1px solid var(--rule)}.values td.n{text-align:right;font-variant-numeric:tabular-nums}
.rows{display:grid;gap:.5rem 1.2rem;grid-template-columns:repeat(auto-fill,minmax(min(29rem,100%),1fr))}
.rows div{display:flex;gap:.6rem;align-items:center}.rows span{flex:0 0 var(--name);overflow-wrap:anywhere}.rows figure{margin:0}
.warn{color:var(--mark)}
"""


def header(context: ReportContext) -> str:
    """What was trained, on what, for how long, and with which command: the facts, with what the data and the method say themselves."""
    train, test, shape = context.train, context.test, context.method.shape
    sizes = f"{len(train.images):,} {train.split} and {len(test.images):,} {test.split} images of {shape.width} x {shape.height} pixels"
    color = "grey" if shape.channels == 1 else "RGB" if shape.channels == 3 else f"{shape.channels} channels"
    classes = f", {len(train.classes)} classes" if train.classes else ""
    own = {
        "method": type(context.method).__name__,
        "data": f"{train.name}: {sizes}, {color}{classes}",
        "parameters": number(sum(p.numel() for p in context.method.parameters())),
    }
    facts = {**own, **context.facts}
    title = facts.get("recipe", facts["method"])
    paper = f'<p class="paper">{escape(facts["paper"])}</p>' if "paper" in facts else ""
    command = f"<pre><code>{escape(facts['command'])}</code></pre>" if "command" in facts else ""
    rest = {k: v for k, v in facts.items() if k not in ("recipe", "paper", "command")}
    return f"<h1>{escape(title)} on {escape(train.name)}</h1>{paper}{command}<dl>{_terms(rest)}</dl>"


def _terms(facts: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items())


def _series(records: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Finite scalars by name over the step; of a step that was repeated, the last value counts."""
    by_step: dict[int, dict[str, Any]] = {}
    for record in records:
        if "step" in record:
            by_step.setdefault(record["step"], {}).update(record)
    series: dict[str, list[tuple[float, float]]] = {}
    for step in sorted(by_step):
        for name, value in by_step[step].items():
            if name not in BOOKKEEPING and isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
                series.setdefault(name, []).append((float(step), float(value)))
    return series


def curves_panel(context: ReportContext) -> str:
    """Every logged scalar over the step; names that differ before the last slash only ("d/loss", "g/loss") share a chart: lines, or
    bars of the last values where there are more names than colors.

    What was logged once (a closed-form fit) is listed instead.
    """
    together: dict[str, dict[str, list[tuple[float, float]]]] = {}
    once = {}
    for name, points in _series(context.records).items():
        if len(points) == 1:
            once[name] = number(points[0][1])
        else:
            together.setdefault(name.rsplit("/", 1)[-1], {})[name] = points
    charts = []
    for tail in sorted(together, key=lambda tail: (tail in LAST, "loss" not in tail)):
        lines = together[tail]
        title = tail if len(lines) > 1 else next(iter(lines))
        short = {name.removesuffix(f"/{tail}"): points for name, points in lines.items()}
        if len(lines) > COLORS:
            charts.append(bars(title, {name: points[-1][1] for name, points in short.items()}, UNITS.get(tail, "")))
        else:
            charts.append(chart(title, short, UNITS.get(tail, "")))
    listed = f"<dl>{_terms(once)}</dl>" if once else ""
    return listed + (f'<div class="charts">{"".join(charts)}</div>' if charts else "")


def metrics_panel(context: ReportContext) -> str:
    """Scores with their errors and intervals of 95 %, beside the real test split's own score (the floor), with the protocol: what all scores
    share once, the rest by score."""
    if not context.evaluation or not context.evaluation["metrics"]:
        return ""
    metrics = context.evaluation["metrics"]
    first = metrics[0]["protocol"]
    shared = {k: v for k, v in first.items() if all(k in m["protocol"] and m["protocol"][k] == v for m in metrics)}

    def listed(protocol: Mapping[str, Any]) -> str:
        return escape(", ".join(f"{k} {number(v) if k != 'seed' else v}" for k, v in protocol.items()))

    rows = ""
    for m in metrics:
        value = number(m["value"]) + ("" if m["error"] is None else f" ± {m['error']:.2g}")
        if span := m.get("interval"):
            value += f" <small>[{number(span[0])}, {number(span[1])}]</small>"
        own = listed({k: v for k, v in m["protocol"].items() if k not in shared})
        cells = f'<td class="n">{value}</td><td class="n">{number(m["floor"])}</td><td>{escape(m["better"])}</td><td>{own}</td>'
        rows += f"<tr><th>{escape(m['name'])}</th>{cells}</tr>"
    head = "<tr><th>score</th><th>samples</th><th>real test images</th><th>better</th><th>protocol</th></tr>"
    warned = "".join(f'<p class="warn">{escape(text)}</p>' for text in context.evaluation["warnings"])
    common = f'<p class="note">Protocol of all scores: {listed(shared)}.</p>' if shared else ""
    return f'<div class="wide"><table class="values">{head}{rows}</table></div>{common}{warned}'


SECTIONS: tuple[tuple[str, Panel], ...] = (
    ("Samples", samples_panel),
    ("Edits", edits_panel),
    ("Scores", metrics_panel),
    ("The same seeds over time", history_panel),
    ("Curves", curves_panel),
    ("What it recognizes", accuracy_panel),
    ("From noise to image", strip_panel),
    ("Reconstructions", reconstructions_panel),
    ("Where the bits are", bits_panel),
    ("A walk in latent space", walk_panel),
    ("Nearest training images", neighbors_panel),
)


def _section(title: str, panel: Panel, context: ReportContext) -> str:
    try:
        body = panel(context)
    except UserError as error:  # such as a method that needs a text or a mask with each request
        body = f'<p class="note">Not shown: {escape(str(error))}</p>'
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def build_report(context: ReportContext) -> str:
    """The page as a string; draws at most about 100 samples, and leaves the method and torch's random state as they were.

    The caller may wrap it in an autocast, which the pictures then use; features and distances stay in full precision.
    """
    with undisturbed(context.method):
        sections = "".join(_section(title, panel, context) for title, panel in SECTIONS)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    title = escape(f"{context.facts.get('recipe', type(context.method).__name__)} on {context.train.name}")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><header>{header(context)}</header><main>{sections}</main></body></html>\n"
    )
