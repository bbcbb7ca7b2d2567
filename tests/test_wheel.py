"""The wheel: pure, nothing but the package inside, and a client without the server's dependencies.

`make test` runs the whole suite in an environment where `sandbox_aio` is the installed wheel and `src/` is out of reach
(`tools/install_wheel.py`). Here is what the wheel itself promises.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.sources import ROOT
from tools.install_wheel import build_wheel, make_environment

if TYPE_CHECKING:
    from email.message import Message

BASE = {"anyio", "attrs", "cattrs", "httpx", "wsproto"}
SERVER = {"cryptography", "h11", "pyjwt", "python-multipart", "starlette"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built of this checkout."""
    return build_wheel(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """What the wheel says of itself."""
    (found,) = importlib.metadata.distributions(path=[str(wheel)])
    return found.metadata  # type: ignore[return-value]


def required(metadata: Message, extra: str = "") -> set[str]:
    """Return the names of what the wheel requires, for an extra or without any."""
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    return {r.name for r in requirements if (f'extra == "{extra}"' in str(r.marker) if extra else r.marker is None)}


def test_is_pure(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")


def test_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "src"
    assert files == {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "sandbox_aio/py.typed" in files


def test_says_what_it_is(metadata: Message) -> None:
    assert metadata["Name"] == "sandbox-aio"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_base_install_is_the_client(metadata: Message) -> None:
    assert required(metadata) == BASE
    assert set(metadata.get_all("Provides-Extra", [])) == {"auth", "server", "trio", "speedups", "zstd"}
    assert required(metadata, "server") == SERVER
    assert required(metadata, "auth") == {"cryptography", "pyjwt"}
    assert required(metadata, "trio") == {"trio"}
    assert required(metadata, "speedups") == {"msgspec"}


def with_dependencies(names: set[str]) -> set[str]:
    """Return `names` and all that they require in turn, of what is installed here."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = canonicalize_name(queue.pop())
        if name in found:
            continue
        found.add(name)
        requirements = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        queue += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def link_packages(names: set[str], folder: Path) -> None:
    """Make the installed packages `names` importable from `folder`."""
    for name in names:
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            target = folder / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))))


def test_client_imports_without_the_extras(wheel: Path, tmp_path: Path) -> None:
    make_environment(tmp_path, wheel)
    (development,) = tmp_path.rglob("development.pth")
    link_packages(with_dependencies(BASE), development.parent)
    development.unlink()
    code = f"""
import importlib.util
for extra in ("starlette", "trio", "msgspec", "langsmith", "pytest"):
    assert importlib.util.find_spec(extra) is None, extra
from sandbox_aio import AsyncSandboxClient, SandboxClient
from sandbox_aio import *
import sandbox_aio
assert sandbox_aio.__file__.startswith({str(tmp_path)!r}), sandbox_aio.__file__
"""
    environment = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
    command = [str(tmp_path / "bin/python"), "-c", code]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=60)


def test_this_suite_runs_on_the_package_it_should() -> None:
    """In the environment of `tools/install_wheel.py` that is the wheel, and `src/` is out of reach."""
    import sandbox_aio

    site_packages = Path(sysconfig.get_path("purelib"))
    wheel = (site_packages / "development.pth").exists()
    assert Path(sandbox_aio.__file__).parent.parent == (site_packages if wheel else ROOT / "src")
    assert (str(ROOT / "src") in sys.path) is not wheel
