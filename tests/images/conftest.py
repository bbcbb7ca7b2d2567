"""The images of registries are the server's business: asyncio only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.registry import Registry, registry

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that everybody may use, without TLS."""
    with registry(tmp_path_factory.mktemp("hub")) as running:
        yield running
