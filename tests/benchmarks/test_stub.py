"""The stub that benchmarks measure against speaks the protocol, and the workloads notice lost output."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.harness import Sample, Series, stub_server
from benchmarks.rows import MIB, OFFICIAL, OURS, ROWS, Bar, Variant
from benchmarks.stub import log_lines
from benchmarks.worker import subject
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.workloads import Number

WORK: dict[str, dict[str, Number]] = {
    "run": {"command": "output 40 32768", "size": 40 * 32768},
    "iterate": {"command": "output 3000 80", "size": 3000 * 80},
    "sequence": {"command": "tiny", "times": 3},
    "concurrent": {"command": "tiny", "times": 20, "at_once": 10},
    "echo": {"times": 5},
    "resume": {"command": "resume 3 1000 2", "size": 3000, "drops": 1},
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stub_server() as running:
        yield running


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.leaks("the official client closes what it opened when it is collected")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("workload", WORK)
async def test_a_workload_with_the_official_client(endpoint: str, workload: str) -> None:
    async with subject("official", endpoint, "stub") as opened:
        assert await WORKLOADS[workload](opened, **WORK[workload]) > 0


@pytest.mark.anyio
@pytest.mark.parametrize("workload", WORK)
async def test_a_workload_with_our_client(endpoint: str, workload: str) -> None:
    async with subject("ours", endpoint, "stub") as opened:
        assert await WORKLOADS[workload](opened, **WORK[workload]) > 0


@pytest.mark.anyio
async def test_a_workload_notices_what_is_missing(endpoint: str) -> None:
    async with subject("ours", endpoint, "stub") as opened:
        with pytest.raises(AssertionError, match="expected 8001, got 8000"):
            await WORKLOADS["iterate"](opened, command="output 100 80", size=8001)


def test_log_lines_have_the_size_that_was_asked_for() -> None:
    assert [len(log_lines(size)) for size in (1, 80, 4096, MIB)] == [1, 80, 4096, MIB]


def test_ratios() -> None:
    speed_up, share = Bar(at_least=1.5), Bar(at_most=0.05)
    assert (speed_up.ratio(3.0, 2.0), speed_up.met(1.5), speed_up.met(1.49), str(speed_up)) == (
        1.5,
        True,
        False,
        ">= 1.5x",
    )
    assert (share.ratio(2.0, 0.1), share.met(0.05), share.met(0.06), str(share)) == (0.05, True, False, "<= 0.05x")


def series(variant: Variant, *values: float) -> Series:
    return Series(variant, [Sample(value=value, cpu=value / 2) for value in values])


def test_a_line_of_the_table_takes_the_median_of_the_pairs() -> None:
    main: Any = importlib.import_module("benchmarks.__main__")
    row = next(row for row in ROWS if row.id == "P2")
    (line,) = main.lines(row, [series(OFFICIAL, 2.0, 4.0, 9.0), series(OURS, 1.0, 1.0, 1.0)])
    assert (line.ratio, line.cpu_ratio, line.baseline_median, line.ours_median) == (4.0, 4.0, 4.0, 1.0)
    assert line.verdict == "pass"
    (failed,) = main.lines(row, [series(OFFICIAL, 2.0), Series(OURS, error="it broke")])
    assert (failed.ratio, failed.verdict) == (None, "error: it broke")
