"""The facade of the fake client: generated anew for the tests, and run under the name of a file of the package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sandbox_aio.sync
from tools import gen_sync

FAKE_CLIENT = Path(__file__).with_name("fake_client.py")


def generate() -> str:
    """Generate the facade of the fake client."""
    return gen_sync.generator_for([FAKE_CLIENT], "tests.sync").generate()


def _load() -> dict[str, Any]:
    file = Path(str(sandbox_aio.sync.__file__)).with_name("_generated_for_tests.py")
    names: dict[str, Any] = {"__name__": "sandbox_aio.sync._generated_for_tests", "__package__": "sandbox_aio.sync"}
    exec(compile(generate(), str(file), "exec"), names)
    return names


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.005)


if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_aio.sync import CommandHandle as CommandHandle
    from sandbox_aio.sync import Sandbox as Sandbox
    from sandbox_aio.sync import SandboxClient as RealClient

    class SandboxClient(RealClient):
        """The real client as far as its types go, and what only the fake has."""

        log: list[str]
        fills: int
else:
    _names = _load()
    CommandHandle, Sandbox, SandboxClient = (_names[name] for name in ("CommandHandle", "Sandbox", "SandboxClient"))
