"""A daemon as an ordinary process, on a unix socket, for every test of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon.process import Daemon, daemon_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The daemon is asyncio only."""
    return "asyncio", {"debug": True}


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that leave nothing behind in it."""
    with daemon_process(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture
def own_daemon(tmp_path: Path) -> Callable[..., AbstractContextManager[Daemon]]:
    """Make a daemon of the test's own, with members of its config as keyword arguments."""

    def make(**config: Any) -> AbstractContextManager[Daemon]:
        return daemon_process(tmp_path, **config)

    return make
