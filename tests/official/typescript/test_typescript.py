"""The official TypeScript client drives our server, with the package `ws` (websocket) and without it (`POST /execute`).

The scenarios are in `scenarios.mjs`. Node plays them all in one process for each transport; here each becomes a test.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving import API_KEY

if TYPE_CHECKING:
    from tests.serving import Server

FOLDER = Path(__file__).parent
TRANSPORTS = {"ws": [], "http": ["--import", "./without_ws.mjs"]}
"""What each transport is called, and the options of `node` that bring it about."""


def scenarios() -> list[tuple[str, str]]:
    """Return each transport with the name of each scenario that is played with it, as `scenarios.mjs` has them."""
    source = (FOLDER / "scenarios.mjs").read_text()
    groups = {"withOrWithoutWs": ("ws", "http"), "onlyWithWs": ("ws",), "onlyWithoutWs": ("http",)}
    found = []
    for group, body in re.findall(r"^export const (\w+) = \{$(.*?)^\};$", source, re.DOTALL | re.MULTILINE):
        for name in re.findall(r"^  async (\w+)\(", body, re.MULTILINE):
            found += [(transport, name) for transport in groups[group]]
    return found


@pytest.fixture(scope="session")
def outcomes(server: Server, image: str) -> dict[str, dict[str, str | None]]:
    """For each transport, what became of each scenario: None, or an error's stack."""
    assert (FOLDER / "node_modules/langsmith").is_dir(), (
        f"the TypeScript SDK is not installed: run `make test`, or `npm ci` in {FOLDER}"
    )
    return {transport: _play(transport, server, image) for transport in TRANSPORTS}


def _play(transport: str, server: Server, image: str) -> dict[str, str | None]:
    command = ["node", *TRANSPORTS[transport], "play.mjs", transport, server.endpoint, API_KEY, image]
    ended = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=150)
    assert ended.returncode == 0, f"node ended with status {ended.returncode}:\n{ended.stdout}\n{ended.stderr}"
    lines: list[dict[str, Any]] = [json.loads(line) for line in ended.stdout.splitlines()]
    return {line["name"]: line.get("error") for line in lines}


@pytest.mark.timeout(330)  # The first test waits for all of them.
@pytest.mark.parametrize("scenario", scenarios(), ids="-".join)
def test_scenario(outcomes: dict[str, dict[str, str | None]], scenario: tuple[str, str]) -> None:
    transport, name = scenario
    assert outcomes[transport][name] is None, outcomes[transport][name]


@pytest.mark.timeout(330)
def test_every_scenario_is_a_test(outcomes: dict[str, dict[str, str | None]]) -> None:
    played = {(transport, name) for transport, results in outcomes.items() for name in results}
    assert played == set(scenarios())
