"""One server, and one image in a registry, for all the tests with an official SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.registry import registry
from tests.serving import Server, serving
from tests.small_images import python_image

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server, which every test shares."""
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with a Python, by the name under which a registry has it: `HOST/team/python:3`."""
    with registry(tmp_path_factory.mktemp("hub")) as hub:
        yield hub.push(python_image(tmp_path_factory.mktemp("image")), "team/python", tag="3")
