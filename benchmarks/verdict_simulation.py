"""How often the product's verdicts are wrong, and what they cost, on simulated noise.

Every verdict comes from ``pytest_vllmperf.domain``; only the noise is made up here. Seeded: one seed and
one version of numpy and scipy give the same figures. The last line is one JSON object, shares as fractions.

    python benchmarks/verdict_simulation.py [--quick] [--seed 1] [--scale 1.0]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import binomtest
from verdict_noise import BASE, NIGHTS, Noise, confirmed, request_logs, run_gate, run_gates
from verdict_rivals import fixed_five_percent, interleaved_benchstat, pooled_requests

from pytest_vllmperf.domain.calibration import proposed_level
from pytest_vllmperf.domain.history_band import judge_history
from pytest_vllmperf.domain.intervals import AbsoluteVerdict, judge_absolute
from pytest_vllmperf.domain.metrics import METRICS, Better
from pytest_vllmperf.domain.paired import judge_pairs
from pytest_vllmperf.domain.quality_gate import QUESTION_LOOKS, AnswersVerdict, judge_answers, judge_floor
from pytest_vllmperf.domain.thresholds import Limit, Outcome
from pytest_vllmperf.domain.trend import scan_trend

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
SCENARIOS = {
    "base": BASE,
    "environment +4 %": Noise(shift=0.04),
    "environment -4 %": Noise(shift=-0.04),
    "+4 % in mid-job": Noise(step=0.04),
    "launch sd x 2": Noise(launch=0.024),
    "5 % lemon launches": Noise(lemon_share=0.05),
    "drift": Noise(drift=0.06),
}
H200 = {"TTFT": (0.10, 0.15), "output throughput": (0.01, 0.05), "TPOT": (0.006, 0.05)}
"""Launch sd measured on one H200 (from three launches only), and the catalogue's tolerance."""


@dataclass
class Run:
    """One run of the simulation: its randomness, how much of everything, and what it found."""

    seed: int
    scale: float
    quick: bool = False
    found: dict[str, float] = field(default_factory=dict)

    def rng(self, *place: int) -> np.random.Generator:
        """Independent randomness for each part, so that one part's length does not move another's figures."""
        return np.random.default_rng([self.seed, *place])

    def count(self, full: int, *, quick: int | None = None) -> int:
        """Repetitions of something done ``full`` times in a whole run, and ``quick`` times in a quick one."""
        return quick if self.quick and quick is not None else max(10, round(full * self.scale))


def percent(share: float) -> str:
    return f"{100 * share:.2f}" if 0 < share < 0.1 else f"{100 * share:.1f}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"\n### {title}\n")
    print(f"| {' | '.join(head)} |")
    print(f"|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def upper_bound(events: int, count: int) -> float:
    """Exact 95 % upper bound of a share."""
    return float(binomtest(events, count).proportion_ci(0.90, method="exact").high)


def false_fails(run: Run) -> None:
    """A/A gates: how often is an unchanged engine failed, by us and by others?"""
    worst, rows = 0.0, []
    for number, (name, noise) in enumerate(SCENARIOS.items()):
        count = run.count(10_000 if name == "base" else 4000, quick=2000 if name == "base" else None)
        gates = run_gates(run.rng(1, number), noise, count)
        share = gates.share(FAIL)
        if name == "base":
            run.found.update(false_fail_base=share, launches_null=gates.mean_launches)
        worst = max(worst, share)
        others = (
            fixed_five_percent(run.rng(2, number), noise, 0.0, run.count(20_000)),
            pooled_requests(run.rng(3, number), noise, 0.0, run.count(500)),
            interleaved_benchstat(run.rng(4, number), noise, 0.0, run.count(2000)),
        )
        bound = upper_bound(round(share * count), count)
        ours = (percent(share), percent(bound), percent(gates.share(PASS)), f"{gates.mean_launches:.1f}")
        rows.append((name, str(count), *ours, *map(percent, others)))
    run.found["false_fail_worst"] = worst
    head = ("scenario", "gates", "FAIL %", "95 % bound", "PASS %", "launches")
    rivals = ("`mean:5%` FAIL %", "Mann-Whitney, requests", "benchstat 8+8")
    table("A/A: nothing changed", (*head, *rivals), rows)


def power(run: Run) -> None:
    """Real regressions: how often are they failed, alone and with confirmation, and what does it cost?"""
    rows = []
    for number, effect in enumerate((0.0, 0.03, 0.05, 0.10)):
        gates = run_gates(
            run.rng(5, number), BASE, run.count(4000, quick=1000 if effect == 0.05 else 400), effect=effect
        )
        again = confirmed(run.rng(6, number), BASE, gates, effect=effect)
        share = gates.share(FAIL)
        if effect == 0.05:
            run.found.update(power_5=share, launches_5=gates.mean_launches)
        if effect == 0.10:
            run.found["power_10"] = share
        alone = (percent(share), percent(gates.share(PASS)), f"{gates.mean_launches:.1f}")
        repeated = (percent(again.share(FAIL)), percent(again.share(PASS)), f"{again.mean_launches:.1f}")
        rival = interleaved_benchstat(run.rng(7, number), BASE, effect, run.count(2000))
        rows.append((f"{effect:.0%}", *alone, *repeated, percent(rival)))
    head = (
        "regression",
        "FAIL %",
        "PASS %",
        "launches",
        "FAIL % confirmed",
        "PASS %",
        "launches",
        "benchstat 8+8 FAIL %",
    )
    table("Base noise, tolerance 5 %", head, rows)


def suite(run: Run, metrics: int = 40) -> None:
    """A suite of many unchanged metrics, as if each had launches of its own."""
    suites = run.count(200)
    gates = run_gates(run.rng(8), BASE, suites * metrics)
    again = confirmed(run.rng(9), BASE, gates, effect=0.0)
    rows = []
    for name, which in (("alone", gates), ("confirmed", again)):
        failed = np.array([v.outcome is FAIL for v in which.verdicts]).reshape(suites, metrics).any(axis=1)
        rows.append((name, str(suites), percent(failed.mean()), percent(upper_bound(int(failed.sum()), suites))))
    table(f"Suite of {metrics} unchanged metrics", ("", "suites", "with a FAIL %", "95 % bound"), rows)


def h200(run: Run) -> None:
    """The same gate for the launch noise seen on an H200, at the catalogue's tolerances."""
    rows = []
    for number, (name, (spread, tolerance)) in enumerate(H200.items()):
        noise = Noise(launch=spread, within=0.0)
        for effect in (0.0, 0.03, 0.05, 0.10, 0.15, 0.30, 0.50):
            if effect > 0.10 and spread < 0.05:
                continue
            gates = run_gates(
                run.rng(10, number, round(1000 * effect)), noise, run.count(1000), effect=effect, tolerance=tolerance
            )
            shares = (percent(gates.share(o)) for o in (FAIL, INCONCLUSIVE, PASS))
            what = f"{name} (sd {spread:.1%}, tolerance {tolerance:.0%})"
            rows.append((what, f"{effect:.0%}", *shares, f"{gates.mean_launches:.1f}"))
    head = ("metric", "regression", "FAIL %", "INCONCLUSIVE %", "PASS %", "launches")
    table("Launch noise seen on an H200", head, rows)


REQUESTS = {"p50": (1000, 459, 60), "p95": (1000, 459, 100, 60), "p99": (1000, 459)}
"""Requests a launch; a p95 is judged from 60 on, a p99 from 459."""


def coverage(run: Run) -> None:
    """Bounds of absolute limits: how often do they cover the truth, and how often does it pass as its limit?"""
    rows = []
    truth_logs = request_logs(run.rng(11), np.zeros(200), 10_000).ravel()
    for number, (statistic, quantile) in enumerate((("p50", 0.5), ("p95", 0.95), ("p99", 0.99))):
        truth = float(np.exp(np.quantile(truth_logs, quantile)))
        least = 1.0
        for requests in REQUESTS[statistic]:
            for launches in ((3,), (5,), (8,), (3, 5, 8)):
                rng, count = (
                    run.rng(12, number, requests, *launches),
                    run.count(1500, quick=240 if len(launches) == 1 else 80),
                )
                levels = [level_gate(rng, statistic, quantile, truth, requests, launches) for _ in range(count)]
                upper = sum(v.high is not None and v.high >= truth for v in levels) / count
                lower = sum(v.low is not None and v.low <= truth for v in levels) / count
                least = min(least, upper) if len(launches) == 1 else least
                wrong = (sum(v.outcome is outcome for v in levels) / count for outcome in (PASS, FAIL))
                confidence = f"{levels[0].confidence:.1%}" if len(launches) == 1 else ""
                looks = ", ".join(map(str, launches))
                rows.append((statistic, str(requests), looks, confidence, *map(percent, (upper, lower, *wrong))))
        run.found[f"coverage_{statistic}"] = least
    head = ("", "requests", "looks", "nominal", "upper covers %", "lower covers %", "PASS % at the limit", "FAIL %")
    table("Absolute limits: coverage of the bounds, and verdicts on a level that is just its limit", head, rows)


def level_gate(
    rng: np.random.Generator, statistic: str, quantile: float, truth: float, requests: int, looks: Sequence[int]
) -> AbsoluteVerdict:
    """One engine against a limit that is its true percentile; several looks stop at PASS or FAIL."""
    limit = Limit(
        metric=f"ttft_{statistic}", maximum=truth, minimum=None, tolerance=None, required=True, where="", text=""
    )
    logs = request_logs(rng, rng.normal(0, BASE.launch, looks[-1]), requests)
    values = np.exp(np.quantile(logs, quantile, axis=-1)).tolist()
    for n in looks:
        verdict = judge_absolute(values[:n], limit, samples=requests, replicate="launch", budget=looks[-1])
        if verdict.outcome is not INCONCLUSIVE:
            break
    return verdict


def calibration(run: Run) -> None:
    """Limits proposed from one session's launches: how often does one launch of a later session miss them?"""
    rows = []
    for launches in (3, 5, 8):
        rng, count = run.rng(17, launches), run.count(4000)
        bounds = []
        for _ in range(count):
            found = proposed_level(METRICS["tpot_mean"], np.exp(BASE.job(rng, launches)).tolist())
            assert not isinstance(found, str)
            bounds.append(found.bound)
        missed = []
        for effect in (0.0, 0.05, 0.10, 0.20):
            later = np.exp([BASE.job(rng, 1)[0] for _ in range(count)]) * (1 + effect)
            missed.append(percent(float(np.mean(later > bounds))))
        rows.append((str(launches), percent(float(np.median(bounds)) - 1), *missed))
    head = ("launches", "median margin %", "missed unchanged %", "5 % slower", "10 % slower", "20 % slower")
    table("Calibrated limits of TPOT, judged by one launch of another session", head, rows)


def nightly(run: Run, length: int = 60, step_at: int = 40) -> None:
    """Nightly scans: false alarms a year, how many the relative gate lets through, and steps found in five nights."""
    rows = []
    for number, night in enumerate(NIGHTS):
        rng, series = run.rng(13, number), run.count(200)
        alarms = wrong = 0
        for _ in range(series):
            values, answered = night.series(rng, length, None, 0.0), 0
            for tonight in range(12, length + 1):
                if scan_trend(values[:tonight].tolist(), better=Better.LOWER, answered=answered).step is not None:
                    alarms, answered = alarms + 1, tonight
                    wrong += run_gate(rng, BASE, 0.0, 0.05).outcome is FAIL
        years = series * (length - 11) / 365
        if night.pairs:
            run.found.update(alarms_a_year=alarms / years, confirmed_a_year=wrong / years)
        detected = []
        for size in (0.03, 0.05, 0.10):
            hits = sum(
                any(
                    scan_trend(values[: step_at + late].tolist(), better=Better.LOWER).step is not None
                    for late in range(1, 6)
                )
                for values in (night.series(rng, length, step_at, size) for _ in range(run.count(600)))
            )
            detected.append(percent(hits / run.count(600)))
            if night.pairs and size == 0.05:
                run.found["steps_found"] = hits / run.count(600)
        rows.append((night.name, f"{years:.0f}", f"{alarms / years:.2f}", f"{wrong / years:.3f}", *detected))
    head = ("series", "metric-years", "alarms a year", "confirmed a year", "3 % found", "5 % found", "10 % found")
    table("Nightly trend: false alarms, and steps found within five nights (%)", head, rows)


def ask(rng: np.random.Generator, drop: float, looks: tuple[int, ...], discordance: float = 0.08) -> AnswersVerdict:
    """One sequential comparison of answers, with ``discordance`` of them differing."""
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    if gained < 0:
        lost, gained = drop, 0.0
    kind = rng.choice(4, size=looks[-1], p=[lost, gained, 0.8 - lost, 0.2 - gained])
    baseline, candidate = np.isin(kind, (0, 2)).tolist(), np.isin(kind, (1, 2)).tolist()
    plan = QUESTION_LOOKS.within(looks[-1])
    n: int | None = plan.at[0]
    while n is not None:
        verdict = judge_answers(baseline[:n], candidate[:n], tolerance=0.03, looks=plan)
        n = verdict.next_look
    return verdict


def quality(run: Run) -> None:
    """Sequential paired McNemar at a tolerance of three points, and thirty questions against a floor."""
    rows = []
    for questions in (1319, 30):
        for number, drop in enumerate((0.0, 0.03, 0.05, 0.10, 0.20)):
            rng, count = run.rng(14, questions, number), run.count(1500)
            verdicts = [ask(rng, drop, QUESTION_LOOKS.within(questions).at) for _ in range(count)]
            shares = [
                percent(sum(v.outcome is outcome for v in verdicts) / count) for outcome in (FAIL, INCONCLUSIVE, PASS)
            ]
            if questions == QUESTION_LOOKS.budget:
                run.found[f"quality_fail_{100 * drop:.0f}"] = sum(v.outcome is FAIL for v in verdicts) / count
            asked = float(np.mean([v.n for v in verdicts]))
            rows.append((str(questions), f"{100 * drop:.0f} points", *shares, f"{asked:.0f}"))
    head = ("questions at most", "drop", "FAIL %", "INCONCLUSIVE %", "PASS %", "questions asked")
    table("Paired answers, 8 % differ, tolerance 3 points", head, rows)
    rows = []
    for number, (truth, floor, n) in enumerate(
        ((0.80, 0.77, 30), (0.80, 0.77, 1319), (0.77, 0.77, 30), (0.74, 0.77, 30))
    ):
        rng, count = run.rng(15, number), run.count(2000)
        outcomes = [judge_floor(int(right), n, floor).outcome for right in rng.binomial(n, truth, count)]
        shares = [percent(outcomes.count(o) / count) for o in (FAIL, INCONCLUSIVE, PASS)]
        rows.append((str(n), f"{truth:.0%}", f"{floor:.0%}", *shares))
    table("Floor", ("questions", "true share", "floor", "FAIL %", "INCONCLUSIVE %", "PASS %"), rows)


def cost(run: Run) -> None:
    """CPU time of one judgement of each kind. The slowest is reported; importing scipy is not part of it."""
    rng = run.rng(16)
    pairs = np.exp(rng.normal(0, 0.02, (10, 2)))
    history = np.exp(rng.normal(0, 0.03, 60)).tolist()
    answers = (rng.random((1319, 2)) < 0.8).tolist()
    limit = Limit(metric="ttft_p50", maximum=1.0, minimum=None, tolerance=None, required=True, where="", text="")
    first, second = (list(column) for column in zip(*answers, strict=True))
    lengths = iter(range(len(history), 11, -1))
    judgements: dict[str, Callable[[], object]] = {
        "relative, 10 pairs": lambda: judge_pairs(
            pairs[:, 0].tolist(), pairs[:, 1].tolist(), better=Better.LOWER, tolerance=0.05
        ),
        "absolute, 8 launches": lambda: judge_absolute(history[:8], limit, samples=1000, replicate="launch", budget=8),
        "history band": lambda: judge_history(history, 1.0, better=Better.LOWER),
        "trend, a length never seen before": lambda: scan_trend(
            history[: next(lengths)], better=Better.LOWER, answered=1, alpha=0.004
        ),
        "answers, 1319": lambda: judge_answers(first, second, tolerance=0.03),
        "floor, 1319": lambda: judge_floor(1050, 1319, 0.77),
    }
    times = {}
    for name, judgement in judgements.items():
        taken = []
        for _ in range(20):
            began = time.process_time_ns()
            judgement()
            taken.append((time.process_time_ns() - began) / 1e6)
        times[name] = float(np.median(taken))
    run.found["judge_ms"] = max(times.values())
    table("CPU time of one judgement", ("", "ms"), ((name, f"{ms:.2f}") for name, ms in times.items()))


GOALS = (
    ("false FAIL, base noise", "false_fail_base", "<=", 0.005),
    ("false FAIL, worst scenario", "false_fail_worst", "<=", 0.02),
    ("FAIL at a 5 % regression", "power_5", ">=", 0.95),
    ("FAIL at a 10 % regression", "power_10", ">=", 0.995),
    ("mean launches, no regression", "launches_null", "<=", 11),
    ("mean launches, 5 % regression", "launches_5", "<=", 13),
    ("upper bound covers, p50", "coverage_p50", ">=", 0.93),
    ("upper bound covers, p95", "coverage_p95", ">=", 0.91),
    ("upper bound covers, p99", "coverage_p99", ">=", 0.90),
    ("nightly alarms per metric-year, control", "alarms_a_year", "<=", 1.2),
    ("confirmed false alarms per metric-year", "confirmed_a_year", "<=", 0.05),
    ("5 % steps found within five nights, control", "steps_found", ">=", 0.95),
    ("answers: FAIL without a drop", "quality_fail_0", "<=", 0.01),
    ("answers: FAIL at a drop of 3 points", "quality_fail_3", ">=", 0.85),
    ("CPU ms of the slowest judgement", "judge_ms", "<=", 50),
)


def goals(run: Run) -> None:
    """Which of the goals this run reached. A quick run repeats too little to decide a close one."""
    rows = []
    for what, key, sense, goal in GOALS:
        reached = run.found[key] <= goal if sense == "<=" else run.found[key] >= goal
        rows.append((what, f"{run.found[key]:.4g}", f"{sense} {goal:g}", "yes" if reached else "**no**"))
    table("Goals", ("", "figure", "goal", "reached"), rows)


PARTS = (cost, false_fails, power, suite, h200, coverage, calibration, nightly, quality, goals)
KEYS = (
    "false_fail_base",
    "false_fail_worst",
    "power_5",
    "power_10",
    "launches_null",
    "launches_5",
    "coverage_p50",
    "coverage_p95",
    "coverage_p99",
    "judge_ms",
)
QUICK_SCALE = 0.08


def main() -> None:
    """Run every part and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"a smaller run: --scale {QUICK_SCALE}")
    parser.add_argument("--seed", type=int, default=1, help="decides all randomness (default: 1)")
    parser.add_argument("--scale", type=float, default=1.0, help="repetitions of everything, as a share (default: 1)")
    arguments = parser.parse_args()
    run = Run(seed=arguments.seed, scale=QUICK_SCALE if arguments.quick else arguments.scale, quick=arguments.quick)
    began = time.process_time()
    for part in PARTS:
        before = time.process_time()
        part(run)
        print(f"{part.__name__}: {time.process_time() - before:.1f} s of CPU", file=sys.stderr)
    print(f"\n{time.process_time() - began:.0f} s of CPU, seed {run.seed}, scale {run.scale:g}\n")
    print(json.dumps({key: round(run.found[key], 5) for key in KEYS}))


if __name__ == "__main__":
    main()
