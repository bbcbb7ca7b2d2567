"""One server for all the tests with an official SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.serving import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, which every test shares."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running
