"""What every test gets: both event loops, no silent skips, no leaks, and Hypothesis without a stopwatch.

* ``anyio_backend`` runs an async test on asyncio (in debug mode) and trio. Folders that are asyncio only override it.
* A skip is a failure: a test that cannot run here must say so by a marker that this file knows.
* ``@pytest.mark.root`` tests are deselected for an ordinary user, and the summary lists them by name and count.
* Whatever a test starts is gone when it ends: tasks, threads, file descriptors, child processes.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = ["tests.leaks"]

hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis.settings.register_profile("thorough", parent=hypothesis.settings.get_profile("suite"), max_examples=2_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has what runs in its background ignore Ctrl-C, and so would every program of which a test asks to obey it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

NEEDS_ROOT = pytest.StashKey[list[str]]()


@pytest.fixture(params=[("asyncio", {"debug": True}), ("trio", {})], ids=["asyncio", "trio"], scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loop of an async test."""
    backend: tuple[str, dict[str, Any]] = request.param
    return backend


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Tell coverage, if it is at work, which file the test comes from (`tools/own_coverage.py`)."""
    coverage = sys.modules.get("coverage")
    if coverage and (measuring := coverage.Coverage.current()):
        measuring.switch_context(item.nodeid.partition("::")[0])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what needs root when we are not root, and remember its names."""
    if os.geteuid() == 0:
        return
    needs_root = [item for item in items if item.get_closest_marker("root")]
    config.stash[NEEDS_ROOT] = [item.nodeid for item in needs_root]
    config.hook.pytest_deselected(items=needs_root)
    items[:] = [item for item in items if not item.get_closest_marker("root")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name every test that was left out for want of root."""
    if names := config.stash.get(NEEDS_ROOT, []):
        terminalreporter.section(f"{len(names)} tests need root and did not run")
        for name in names:
            terminalreporter.line(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure: nothing is skipped silently."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and a skip is a failure here: {report.longreprtext}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a skipped module into a failure."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped, and a skip is a failure here: {report.longreprtext}"
    return report
