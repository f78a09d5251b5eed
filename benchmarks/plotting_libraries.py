"""Which way to draw the report's plots: the page's own SVG against plotting libraries, in a real Chromium.

One page for each way, all with the same frame, policy and numbers: 500 cards (50 engines × 10 workloads × 1 000
requests), in each three ECDFs and five time lines, drawn when their card comes near the window. Libraries get the
points the SVG has, as JSON. Matplotlib draws beforehand, so that a few of its plots are enough to tell.

``strict`` is the page's policy: one script and one style sheet by their hashes, no style attribute, no eval, trusted
types; ``relaxed`` allows inline styles and any HTML a script makes. The last line is one JSON object.

    npm install --prefix /tmp/js plotly.js-basic-dist-min uplot echarts vega vega-lite vega-interpreter
    python benchmarks/plotting_libraries.py --modules /tmp/js/node_modules [--matplotlib PYTHON]
"""

import argparse
import base64
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

import report_samples as sample  # noqa: E402
from chromium import Chromium, Tab, find_chromium  # noqa: E402

from pytest_vllmperf.adapters import html_report  # noqa: E402
from pytest_vllmperf.adapters.html_report.over_time import time_figures  # noqa: E402
from pytest_vllmperf.adapters.html_report.plots import ecdf_plot  # noqa: E402

ASSETS = {
    "svg": ((), ()),
    "plotly-basic": (("plotly.js-basic-dist-min/plotly-basic.min.js",), ()),
    "uplot": (("uplot/dist/uPlot.iife.min.js",), ("uplot/dist/uPlot.min.css",)),
    "echarts": (("echarts/dist/echarts.common.min.js",), ()),
    "vega": (("vega/build/vega.min.js", "vega-lite/build/vega-lite.min.js"), ()),
    "vega-interpreter": (
        ("vega/build/vega.min.js", "vega-lite/build/vega-lite.min.js", "vega-interpreter/build/vega-interpreter.js"),
        (),
    ),
}
VEGA = """(box, p, i, card) => {
  const lite = vegaLite.compile({ width: 300, height: 100, title: p.t,
    data: { values: p.x.map((x, k) => ({ x, y: p.y[k] })) }, mark: { type: "line", interpolate: "step-after" },
    encoding: { x: { field: "x", type: "quantitative" }, y: { field: "y", type: "quantitative" } } }).spec;
  return new vega.View(vega.parse(lite%s), { renderer: "svg"%s }).initialize(box).runAsync();
}"""
DRAW = {
    "svg": "(box, p, i, card) => null",
    "plotly-basic": """(box, p) => Plotly.newPlot(box, [{
        x: p.x, y: p.y, mode: "lines", line: { shape: "hv", width: 1.5 } }],
      { width: 350, height: 170, margin: { l: 40, r: 5, t: 20, b: 30 }, title: { text: p.t, font: { size: 11 } } },
      { staticPlot: true })""",
    "uplot": """(box, p) => new uPlot({ width: 350, height: 170, title: p.t, scales: { x: { time: false } },
      series: [{}, { stroke: "#0a5fd0", paths: uPlot.paths.stepped({ align: 1 }) }] }, [p.x, p.y], box)""",
    "echarts": """(box, p) => echarts.init(box, null, { renderer: "svg", width: 350, height: 170 }).setOption({
      animation: false, aria: { enabled: true }, title: { text: p.t, textStyle: { fontSize: 11 } },
      xAxis: { type: "value" }, yAxis: { type: "value" },
      series: [{ type: "line", step: "end", showSymbol: false, data: p.x.map((x, k) => [x, p.y[k]]) }] })""",
    "vega": VEGA % ("", ""),
    "vega-interpreter": VEGA % (", null, { ast: true }", ", expr: vega.expressionInterpreter"),
}
WATCH = """window.violations = [];
addEventListener("securitypolicyviolation", e => violations.push(e.violatedDirective));
window.errors = [];
addEventListener("error", e => errors.push(e.message));
"""
FRAME = """"use strict";
const draw = %s;
const markup = window.trustedTypes
  ? trustedTypes.createPolicy("vllmperf", { createHTML: text => text }) : { createHTML: text => text };
window.reveal = async function (card) {
  const held = card.querySelector(":scope > noscript, :scope > script");
  if (!held) return;
  if (held.localName === "noscript") {
    const parsed = new DOMParser().parseFromString(markup.createHTML(held.textContent), "text/html");
    held.replaceWith(...Array.from(parsed.body.childNodes, node => document.importNode(node, true)));
    return;
  }
  const plots = JSON.parse(held.textContent);
  held.remove();
  for (const [i, p] of plots.entries()) {
    const box = document.createElement("div");
    box.className = "box";
    card.append(box);
    try { await draw(box, p, i, card); } catch (e) { errors.push(String(e)); }
  }
};
window.cards = Array.from(document.querySelectorAll("article"));
const near = new IntersectionObserver(es => { for (const e of es) if (e.isIntersecting) reveal(e.target); },
  { rootMargin: "600px" });
cards.forEach(card => near.observe(card));
"""
STYLE = (
    "article { min-height: 40rem; content-visibility: auto; }"
    " .box { width: 350px; height: 170px; display: inline-block; }"
)
FRAME_DRAWN = "new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)))"
# Something was drawn: a picture with shapes in it, or a canvas that is not blank.
SEEN = """Array.from(cards[0].querySelectorAll("svg, canvas")).filter(e => e.localName === "canvas"
  ? new Uint32Array(e.getContext("2d").getImageData(0, 0, e.width, e.height).data.buffer).some(Boolean)
  : e.querySelector("path[d]")).length"""
LOOK = """(() => { const t = cards[0].querySelector("svg text"); return t ? getComputedStyle(t).fill
  : cards[0].querySelector("canvas")?.toDataURL() ?? null; })()"""


def plots_of(summary):
    """The plots of a card: as geometry for the page's templates, and as titles with numbers."""
    curves = [(name, summary.metrics[name].samples) for name in ("ttft", "tpot", "e2el")]
    geometry = [ecdf_plot(name, [(summary.engine, values)], unit="s") for name, values in curves]
    numbers = []
    for name, values in curves:
        ordered = np.sort(values)
        shares = np.arange(1, ordered.size + 1) / ordered.size
        # as many points as the SVG has: one for each step that can be seen
        keep = np.append(np.diff(np.round(600 * ordered / ordered[-1])) > 0, True)
        numbers.append({"t": name, "x": _short(ordered[keep]), "y": _short(shares[keep])})
    for name, series in summary.timeline.series.items():
        numbers.append({"t": name, "x": _short(series.at_s), "y": _short(series.values)})
    return geometry, time_figures(summary.timeline, host_memory_bytes=None), numbers


def _short(values):
    return [float(f"{v:.5g}") for v in values]


def page(way, report, modules, *, strict):
    """The page of one way as text."""
    scripts = [WATCH, *(_script((modules / name).read_text(encoding="utf-8")) for name in ASSETS[way][0])]
    style = STYLE + "".join((modules / name).read_text(encoding="utf-8") for name in ASSETS[way][1])
    if way == "svg":
        style += html_report._part("report.css")
    scripts.append(FRAME % DRAW[way])
    env = html_report._template().environment
    draw = env.from_string(
        '{% from "plots.html.j2" import row %}{% from "figures.html.j2" import lines %}'
        "<noscript>{{ row(a) }}{{ lines(b) }}</noscript>"
    )
    cards = []
    for summary in report.summaries:
        geometry, figures, numbers = plots_of(summary)
        inner = (
            draw.render(a=geometry, b=figures)
            if way == "svg"
            else f'<script type="application/json">{json.dumps(numbers, separators=(",", ":"))}</script>'
        )
        cards.append(f"<article><h3>{summary.engine} × {summary.workload}</h3>{inner}</article>")
    hashes = " ".join(_hash(s) for s in scripts)
    policy = f"default-src 'none'; img-src data:; script-src {hashes}; style-src {_hash(style)}; "
    policy += "require-trusted-types-for 'script'; trusted-types vllmperf"
    if not strict:
        policy = (
            f"default-src 'none'; img-src data: blob:; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'"
        )
    return (
        f'<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{way}</title><style>{style}</style><body>{''.join(cards)}"
        + "".join(f"<script>{s}</script>" for s in scripts)
    )


def _script(text):
    """As a classic script: vega's interpreter is published as a module only."""
    text = re.sub(r"^import \{(.+?)\} from 'vega-util';", r"(() => { const {\1} = vega;", text)
    return re.sub(
        r"export \{ expression as expressionInterpreter \};", "vega.expressionInterpreter = expression; })();", text
    )


def _hash(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def measured(browser, path, *, opens=3, cards=12):
    """What one page costs and gives."""
    seconds = []
    for _ in range(opens):
        tab = Tab(browser)
        began = time.perf_counter()
        tab.open(path)
        tab.evaluate("window.first ?? null")
        tab.evaluate(FRAME_DRAWN)
        seconds.append(time.perf_counter() - began)
        if len(seconds) < opens:
            tab.close()
    per_card = tab.evaluate(
        f"(async () => {{ const t = performance.now(); for (const c of cards.slice(20, {20 + cards})) await reveal(c);"
        f" void document.body.offsetHeight; return (performance.now() - t) / {cards} }})()"
    )
    drawn, light = tab.evaluate(SEEN), tab.evaluate(LOOK)
    tab.send("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    tab.evaluate(FRAME_DRAWN)
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    named = [n for n in nodes if n.get("role", {}).get("value") in ("image", "img") and n.get("name", {}).get("value")]
    result = {
        "size_mb": round(path.stat().st_size / 1e6, 2),
        "open_s": round(statistics.median(seconds), 2),
        "ms_per_plot": round(per_card / 8, 2),
        "drawn_of_8": drawn,
        "violations": sorted(set(tab.evaluate("violations"))),
        "violations_n": len(tab.evaluate("violations")),
        "errors": sorted(set(tab.evaluate("errors")))[:2],
        "follows_dark": drawn > 0 and tab.evaluate(LOOK) != light,
        "named_images": len(named),
    }
    began = time.perf_counter()
    tab.evaluate("(async () => { for (const c of cards.slice(40, 80)) await reveal(c); })()")
    result["print_all_s"] = round((time.perf_counter() - began) * tab.evaluate("cards.length") / 40, 1)
    tab.close()
    return result


MATPLOTLIB = """
import io, json, sys, time, matplotlib
matplotlib.use("svg")
import matplotlib.pyplot as plt
plots = json.load(sys.stdin)
began = time.perf_counter(); size = styles = 0
for p in plots:
    figure, axes = plt.subplots(figsize=(3.5, 1.7)); axes.step(p["x"], p["y"], where="post"); axes.set_title(p["t"])
    out = io.StringIO(); figure.savefig(out, format="svg"); plt.close(figure)
    size += len(out.getvalue()); styles += out.getvalue().count("style=")
print(json.dumps({"s": time.perf_counter() - began, "bytes": size, "styles": styles, "n": len(plots)}))
"""


def matplotlib(python, report):
    """What its SVG would take, from the plots of ten cards."""
    numbers = [p for s in report.summaries[:10] for p in plots_of(s)[2]]
    done = subprocess.run(
        [python, "-c", MATPLOTLIB], input=json.dumps(numbers), capture_output=True, text=True, check=True
    )
    got = json.loads(done.stdout)
    factor = 8 * len(report.summaries) / got["n"]
    return {
        "build_s": round(got["s"] * factor, 1),
        "size_mb": round(got["bytes"] * factor / 1e6, 1),
        "style_attributes_per_plot": round(got["styles"] / got["n"], 1),
    }


def main():
    """Measure every way and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", type=Path, required=True, help="a node_modules folder")
    parser.add_argument("--matplotlib", help="a Python that has matplotlib")
    parser.add_argument("--engines", type=int, default=50)
    given = parser.parse_args()
    report = sample.large(engines=given.engines)
    folder = Path(tempfile.mkdtemp())
    found = {}
    browser = Chromium(find_chromium(), folder)
    try:
        for way in ASSETS:
            for strict in (True, False):
                if not strict and not found[f"{way}-strict"]["violations"] and found[f"{way}-strict"]["drawn_of_8"]:
                    continue  # the page's policy takes nothing from it
                path = folder / f"{way}-{'strict' if strict else 'relaxed'}.html"
                began = time.perf_counter()
                path.write_text(page(way, report, given.modules, strict=strict), encoding="utf-8")
                build = round(time.perf_counter() - began, 2)
                found[path.stem] = {"build_s": build, **measured(browser, path)}
                print(path.stem, found[path.stem], flush=True)
    finally:
        browser.close()
    if given.matplotlib:
        found["matplotlib"] = matplotlib(given.matplotlib, report)
        print("matplotlib", found["matplotlib"], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
