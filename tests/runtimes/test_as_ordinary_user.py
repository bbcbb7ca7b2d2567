"""The whole folder, and that of images, once more, as an ordinary user, when the tests are run by root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tests/runtimes", "tests/images")
NOBODY = 65_534
SCRIPT = f"""
mount --bind "$1" "$2"
cd "$2"
shift 2
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups "$@"
"""
IN_THE_OPEN = ["unshare", "--mount", "sh", "-euc", SCRIPT, "sh"]
"""Runs a program as an ordinary user in a checkout that may be in root's home: it is seen through a private mount.
It is followed by the checkout, the empty folder that it is seen in, and the program with its arguments.
"""


def interpreter() -> str:
    """An interpreter of this version that an ordinary user may run: root's own may be in a home that is closed."""
    name = f"python3.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/local/bin/{name}", f"/usr/bin/{name}"):
        try:
            done = subprocess.run(
                [candidate, "-c", "import sqlite3"], user=NOBODY, group=NOBODY, extra_groups=[], check=False
            )
        except OSError:
            continue
        if done.returncode == 0:
            return candidate
    raise AssertionError(f"an ordinary user may run no {name}: install it with the system's package manager")


@pytest.mark.root
@pytest.mark.timeout(400)
def test_everything_here_passes_as_an_ordinary_user() -> None:
    place = Path("/var/tmp") / f"sandbox-aio-test-{os.getpid()}"
    checkout = place / "checkout"
    place.mkdir()
    try:
        os.chown(place, NOBODY, NOBODY)
        checkout.mkdir()
        environment = {
            "PATH": os.defpath,
            "HOME": str(place),
            "PYTHONPATH": os.pathsep.join(entry.replace(str(ROOT), str(checkout)) for entry in sys.path if entry),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        options = ["-q", "--tb=native", "-p", "no:cacheprovider", f"--basetemp={place / 'tmp'}", "-o", "timeout=120"]
        done = subprocess.run(
            [*IN_THE_OPEN, str(ROOT), str(checkout), interpreter(), "-m", "pytest", *options, *FOLDERS],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout)
        assert done.returncode == 0, done.stdout
        assert "tests need root and did not run" in done.stdout
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(place)], check=True)
