"""Check with pyright that the public API of an installed `sandbox_aio` is typed to the last symbol.

Usage: ``python tools/verify_types.py PYTHON``, where PYTHON is the interpreter of the environment that has the wheel.
Prints the score; names every symbol that is not fully typed, and exits with 1, if there is one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGE = "sandbox_aio"
PYRIGHT = Path(__file__).parent / "node_modules/.bin/pyright"


def report(python: Path) -> dict[str, Any]:
    """Return pyright's report on the package that `python` imports, as its JSON has it."""
    pyright = subprocess.run(
        [PYRIGHT, "--verifytypes", PACKAGE, "--ignoreexternal", "--outputjson"],
        cwd=python.parent,  # away from src/
        env=os.environ | {"PATH": f"{python.parent}:{os.environ['PATH']}"},  # which is where --verifytypes looks
        stdout=subprocess.PIPE,
        check=False,  # it exits with 1 when the score is below 100 %
    )
    result: dict[str, Any] = json.loads(pyright.stdout)
    return result


def complaints(report: dict[str, Any]) -> list[str]:
    """Return a line for each symbol of `report` that is not fully typed, and for each error outside a symbol."""
    found = []
    for symbol in report["typeCompleteness"]["symbols"]:
        if symbol["isExported"] and not symbol["isTypeKnown"]:
            reasons = "; ".join(diagnostic["message"] for diagnostic in symbol["diagnostics"])
            found.append(f"{symbol['name']}: {reasons or 'type unknown or ambiguous'}")
    errors = [diagnostic["message"] for diagnostic in report["generalDiagnostics"] if diagnostic["severity"] == "error"]
    return found + errors


def main() -> int:
    """Return the exit status."""
    result = report(Path(sys.argv[1]).absolute())
    lines = complaints(result)
    for line in lines:
        print(line)
    known = result["typeCompleteness"]["exportedSymbolCounts"]["withKnownType"]
    print(f"pyright: {result['typeCompleteness']['completenessScore']:.1%} of {PACKAGE} is typed ({known} symbols)")
    return 1 if lines or result["typeCompleteness"]["completenessScore"] < 1 else 0


if __name__ == "__main__":
    sys.exit(main())
