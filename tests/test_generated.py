"""Generated files are what their generator writes today."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.sources import ROOT


@pytest.mark.parametrize("tool", ["gen_sync", "draw_states", "list_api"])
def test_up_to_date(tool: str) -> None:
    command = [sys.executable, str(ROOT / f"tools/{tool}.py"), "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert check.returncode == 0, f"run `make gen`:\n{check.stdout}{check.stderr}"
