"""A client and a sandbox for the facade's tests, with nothing behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sync.facade import SandboxClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sync.facade import Sandbox


@pytest.fixture
def client() -> Iterator[SandboxClient]:
    with SandboxClient() as client:
        yield client


@pytest.fixture
def sandbox(client: SandboxClient) -> Sandbox:
    return client.get_sandbox("box")
