"""The images of registries are the server's business: asyncio only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.images.pulling import Puller
from tests.registry import Registry, registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that everybody may use, without TLS."""
    with registry(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    return Puller(tmp_path / "state")
