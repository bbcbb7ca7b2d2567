"""One server for all tests of this folder, and clients of both kinds for it. What runs in the sandboxes is real."""

from __future__ import annotations

import importlib
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import langsmith.utils
import pytest

from tests.examples.conftest import OFFICIAL, OFFICIAL_MARKS, OURS
from tests.real.postgres_image import postgres_image
from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30.0


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the snapshots `host` and, for root, `postgres`."""
    options = ["--snapshot", f"postgres={postgres_image()}"] if os.geteuid() == 0 else []
    with serving(tmp_path_factory.mktemp("server"), *options) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two variables that tell a client where the server is. The official client remembers them; it must not."""
    monkeypatch.setenv("LANGSMITH_ENDPOINT", server.origin)
    monkeypatch.setenv("LANGSMITH_API_KEY", API_KEY)
    langsmith.utils.get_env_var.cache_clear()  # type: ignore[attr-defined]  # an overload hides functools.cache
    yield
    langsmith.utils.get_env_var.cache_clear()  # type: ignore[attr-defined]


@pytest.fixture(params=[OURS, pytest.param(OFFICIAL, marks=OFFICIAL_MARKS)])
def m(request: pytest.FixtureRequest) -> Any:
    """The module that a program without an event loop imports from."""
    return importlib.import_module(request.param)


ASYNC_SETTINGS = [(OURS, "asyncio"), (OURS, "trio"), pytest.param((OFFICIAL, "asyncio"), marks=OFFICIAL_MARKS)]
"""The modules that an async program imports from, each with an event loop."""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def eventually(attempt: Callable[[], Any], *errors: type[Exception]) -> Any:
    """Try until it works; the last error is raised."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return attempt()
        except errors:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
