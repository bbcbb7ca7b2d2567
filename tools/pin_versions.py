"""Pin the version of everything that a development environment installs: write `tools/constraints.txt`.

A fresh environment is made from the newest versions that `pyproject.toml` allows, and what it got is written down.
`make demo` and `make test` install by that file, so that they do tomorrow what they did today.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADER = "# The versions that `make` installs. Written by tools/pin_versions.py (`make constraints`).\n"


def newest_versions() -> str:
    """Return what a fresh environment gets, one `name==version` a line."""
    with tempfile.TemporaryDirectory() as environment:
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [f"{environment}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--upgrade", "pip"], check=True)
        subprocess.run(
            [*pip, "install", "--group", "test", "--group", "lint", ".[server,trio,speedups]"], check=True, cwd=ROOT
        )
        freeze = [*pip, "freeze", "--all", "--exclude", "sandbox-aio", "--exclude", "setuptools"]
        return subprocess.run(freeze, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    (ROOT / "tools/constraints.txt").write_text(HEADER + newest_versions())
