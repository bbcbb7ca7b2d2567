"""Check that every module of the core is covered, to the last branch, by its own test file alone.

A whole that is covered says little about its parts: a state machine runs through every module and checks few of them.
So `tests/conftest.py` tells coverage from which file each test comes, and here `protocol/codec.py`, say, is held to
what the tests of `tests/protocol/test_codec.py`, and the import of the module, have reached.

Usage: ``python tools/own_coverage.py``, after ``python -m coverage run -m pytest tests/protocol``. Prints what is
missing, and exits with 1 if anything is.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import coverage

ROOT = Path(__file__).parent.parent
CORE = ROOT / "src/sandbox_aio/protocol"


def reached(module: Path) -> tuple[float, str]:
    """Return how much of `module` its own tests reach, in percent, and coverage's report on it."""
    measured = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"), data_file=str(ROOT / "build/.coverage"))
    measured.load()
    report = io.StringIO()
    contexts = [f"^tests/protocol/test_{module.stem}\\.py$", "^$"]
    percent = measured.report(morfs=[str(module)], contexts=contexts, file=report, skip_covered=False)
    return percent, report.getvalue()


def main() -> int:
    """Return the exit status."""
    modules = [path for path in sorted(CORE.glob("*.py")) if path.stem != "__init__"]
    short = 0
    for module in modules:
        percent, report = reached(module)
        if percent < 100:
            short += 1
            print(report.splitlines()[2])
    print(f"{len(modules) - short} of {len(modules)} modules of the core are covered by their own tests")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
