"""Brings Python packages of this environment into a sandbox, whose own Python has none."""

from __future__ import annotations

import io
import re
import sys
import tarfile
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from sandbox_aio import Sandbox

PACKAGES = "/opt/packages"
"""Where they are in the sandbox: what `PYTHONPATH` is set to there."""


def put_packages(sandbox: Sandbox, *names: str) -> None:
    """Copy distributions, and what they require, into the sandbox.

    Raises:
        AssertionError: The sandbox's Python is another version, and could not import their compiled parts.
    """
    version = sandbox.run("python3 -c 'import sys; print(sys.implementation.cache_tag)'").stdout.strip()
    assert version == sys.implementation.cache_tag, f"the sandbox has {version}: run the tests on the system's Python"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for found in _with_requirements(names):
            _add(tar, found)
    archive.seek(0)
    sandbox.upload("/tmp/packages.tar", archive)
    unpacked = sandbox.run(f"mkdir {PACKAGES} && tar --no-same-owner -xf /tmp/packages.tar -C {PACKAGES}")
    assert unpacked.success, unpacked.stderr


def _with_requirements(names: tuple[str, ...]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    wanted = list(names)
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name not in found:
            found[name] = distribution(name)
            requirements = [Requirement(text) for text in found[name].requires or ()]
            wanted += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return list(found.values())


def _add(tar: tarfile.TarFile, found: Distribution) -> None:
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if path.suffix != ".pyc" and ".." not in file.parts and path.is_file():  # ".." leads to commands
            tar.add(path, arcname=str(file), recursive=False)
