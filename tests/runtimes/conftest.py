"""Sandboxes for the tests of this folder. asyncio only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.runtimes import machine as machines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtimes.machine import Machine, Sandbox


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A runtime for a whole module."""
    with machines.machine(tmp_path_factory.mktemp("machine")) as made:
        yield made


@pytest.fixture(scope="module")
def box(machine: Machine) -> Iterator[Sandbox]:
    """A sandbox for a whole module: for tests that change nothing in it."""
    with machine.sandbox() as made:
        yield made


@pytest.fixture
def sandbox(machine: Machine) -> Iterator[Sandbox]:
    """A sandbox for one test."""
    with machine.sandbox() as made:
        yield made
