"""The command line: `python -m benchmarks [--rows P1,P2] [--rounds 7] [--json] [--check]`."""

from __future__ import annotations

import argparse
import json
import statistics
import sys

import attrs

from benchmarks.harness import Series, measure
from benchmarks.rows import DEFAULT_ROWS, ROWS, Row

LAYOUT = "{:4} {:55} {:8} {:>10}  {:12} {:>10} {:>8} {:>9} {:>9}  {}"


@attrs.frozen(kw_only=True)
class Line:
    """One line of the table: one of our variants against its row's baseline."""

    id: str
    what: str
    baseline: str
    variant: str
    baseline_median: float | None
    ours_median: float | None
    ratio: float | None
    cpu_ratio: float | None
    """The same ratio of the processor time that the two processes used."""
    bar: str
    verdict: str


def lines(row: Row, series: list[Series]) -> list[Line]:
    """Compare every variant with the baseline. The ratio is the median of the ratios of each round's pair."""
    baseline, *others = series
    return [_line(row, baseline, other) for other in others]


def _line(row: Row, baseline: Series, ours: Series) -> Line:
    pairs = list(zip(baseline.samples, ours.samples, strict=False))
    error = baseline.error or ours.error
    ratio = None if error else statistics.median(row.bar.ratio(one.value, other.value) for one, other in pairs)
    return Line(
        id=row.id,
        what=row.what,
        baseline=baseline.variant.label,
        variant=ours.variant.label,
        baseline_median=_median(baseline),
        ours_median=_median(ours),
        ratio=ratio,
        cpu_ratio=None if error else statistics.median(row.bar.ratio(one.cpu, other.cpu) for one, other in pairs),
        bar=str(row.bar),
        verdict=f"error: {error}" if ratio is None else "pass" if row.bar.met(ratio) else "MISS",
    )


def _median(series: Series) -> float | None:
    return statistics.median(sample.value for sample in series.samples) if series.samples else None


def amount(value: float | None, unit: str) -> str:
    """Return `value` with three digits or so and a unit that suits its size."""
    if value is None:
        return "-"
    if unit == "B":
        return f"{value / 1e6:.1f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def main() -> int:
    """Measure the rows that were asked for. Returns 1 after an error, and with `--check` after a miss as well."""
    known = {row.id: row for row in ROWS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare with the official client.")
    parser.add_argument("--rows", default=",".join(DEFAULT_ROWS), help=f"'all', or some of {','.join(known)}")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of numbers to take, at least (default 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a bar is missed")
    options = parser.parse_args()
    chosen = list(known) if options.rows == "all" else options.rows.split(",")
    if unknown := [name for name in chosen if name not in known]:
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(known)}")
    if not options.json:
        print(LAYOUT.format("row", "what", "baseline", "", "ours", "", "ratio", "cpu", "bar", "verdict"))
    verdicts = []
    for row in (known[name] for name in chosen):
        for line in lines(row, measure(row, options.rounds)):
            verdicts.append(line.verdict)
            print(json.dumps(attrs.asdict(line)) if options.json else _table_line(line, row.unit), flush=True)
    failed = any(verdict.startswith("error") for verdict in verdicts)
    return int(failed or (options.check and "MISS" in verdicts))


def _table_line(line: Line, unit: str) -> str:
    return LAYOUT.format(
        line.id,
        line.what,
        line.baseline,
        amount(line.baseline_median, unit),
        line.variant,
        amount(line.ours_median, unit),
        _times(line.ratio),
        _times(line.cpu_ratio),
        line.bar,
        line.verdict,
    )


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}x"


if __name__ == "__main__":
    sys.exit(main())
