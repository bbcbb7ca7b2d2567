"""Build the wheel and install it, and nothing else of this checkout, into a virtual environment of its own.

Run it by the environment that has the development tools. The new environment sees the other packages of that one
through a path file, which is read without the path files in *that* directory: the editable install there, and with it
``src/``, stays out of reach. So whatever is imported as ``sandbox_aio`` came out of the wheel. It takes a second and
no network.

Usage: ``python tools/install_wheel.py FOLDER`` makes ``FOLDER/dist/*.whl`` and ``FOLDER/venv``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def build_wheel(dist: Path) -> Path:
    """Build the wheel of this checkout into `dist` and return its path."""
    hatchling = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(dist)]
    subprocess.run(hatchling, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    (wheel,) = dist.glob("*.whl")
    return wheel


def make_environment(environment: Path, wheel: Path) -> None:
    """Make a virtual environment at `environment` that has `wheel` and the packages installed beside this Python."""
    venv.create(environment, clear=True, symlinks=True)
    python = environment / "bin/python"
    site_packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(environment)}))
    (site_packages / "development.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True)


def main() -> None:
    """Build and install."""
    folder = Path(sys.argv[1]).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    make_environment(folder / "venv", build_wheel(folder / "dist"))


if __name__ == "__main__":
    main()
