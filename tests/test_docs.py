"""The documentation is true: its links lead somewhere, and the README's examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.sources import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)[^)]*\)")
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)
ASYNC, SYNC = EXAMPLE.findall((ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]


@pytest.mark.parametrize(
    "program",
    [ASYNC, ASYNC.replace("anyio.run(main)", "anyio.run(main, backend='trio')"), SYNC],
    ids=["asyncio", "trio", "sync"],
)
def test_the_examples_of_the_readme_run(program: str) -> None:
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 0, run.stderr
    *chunks, exit_code = run.stdout.splitlines()
    assert exit_code == "0"
    assert "".join(eval(chunk.removeprefix("stdout ")) for chunk in chunks) == "0\n1\n2\n"


def test_decisions_have_a_number_each_and_three_parts() -> None:
    numbers = sorted(path.name[:4] for path in (ROOT / "docs/decisions").glob("*.md"))
    assert len(numbers) == len(set(numbers)), f"two decisions have one number: {numbers}"
    for path in (ROOT / "docs/decisions").glob("*.md"):
        text = path.read_text()
        parts = re.findall(r"^(?:## |\*\*)(Context|Decision|Consequences)\b", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequences"], path.name


def test_nothing_is_left_to_do() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "X" + "XX:")
    pages = {path: path.read_text() for folder in ("src", "tests", "tools") for path in (ROOT / folder).rglob("*.py")}
    assert not [str(path) for path, text in pages.items() if any(mark in text for mark in marks)]
