"""A server that the examples find by the environment, as their readers would, and the modules that they may import."""

from __future__ import annotations

from typing import TYPE_CHECKING

import langsmith.utils
import pytest

from tests.serving import API_KEY, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = "sandbox_aio"
OFFICIAL = "langsmith.sandbox"

OFFICIAL_MARKS = (
    pytest.mark.leaks("the official client closes what it opened when it is collected"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # its tunnels call what `websockets` has deprecated
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, which every example shares."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two variables that tell a client where the server is. The official client remembers them; it must not."""
    monkeypatch.setenv("LANGSMITH_ENDPOINT", server.origin)
    monkeypatch.setenv("LANGSMITH_API_KEY", API_KEY)
    langsmith.utils.get_env_var.cache_clear()  # type: ignore[attr-defined]  # an overload hides functools.cache
    yield
    langsmith.utils.get_env_var.cache_clear()  # type: ignore[attr-defined]
