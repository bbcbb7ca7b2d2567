"""A virtual environment, laid out by hand, for `python`, `python3` and `pip` on the host's interpreter.

In a virtual environment pip installs without asking whether the system's packages are managed by somebody else, and
does not need to write to /usr; with the system's packages visible, what the host has installed is there as well.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["VENV", "lay", "system_interpreter"]

VENV: Final = "opt/venv"
_CANDIDATES: Final = ("/usr/local/bin/python3", "/usr/bin/python3")
_PIP_SCRIPT: Final = (
    "#!/{venv}/bin/python3\nimport sys\n\nfrom pip._internal.cli.main import main\n\nsys.exit(main())\n"
)


def system_interpreter() -> Path | None:
    """Return the interpreter that a sandbox will have, a file such as /usr/bin/python3.11, or None."""
    for candidate in _CANDIDATES:
        real = Path(os.path.realpath(candidate))
        if real.is_relative_to("/usr") and os.access(real, os.X_OK) and re.fullmatch(r"python3\.\d+", real.name):
            return real
    return None


def lay(root: Path) -> None:
    """Lay the environment into the skeleton `root`, below /opt/venv; nothing is laid where /usr has no Python 3."""
    interpreter = system_interpreter()
    if interpreter is None:
        return
    venv = root / VENV
    packages = venv / "lib" / interpreter.name / "site-packages"
    packages.mkdir(parents=True)
    binaries = venv / "bin"
    binaries.mkdir()
    version = interpreter.name.removeprefix("python")
    (venv / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\ninclude-system-site-packages = true\nversion = {version}\n"
    )
    for name in ("python", "python3", interpreter.name):
        (binaries / name).symlink_to(interpreter)
    if not _system_has_pip(interpreter) and (wheel := next(_pip_wheels(interpreter), None)) is not None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    for name in ("pip", "pip3", f"pip{version}"):
        script = binaries / name
        script.write_text(_PIP_SCRIPT.format(venv=VENV))
        script.chmod(0o755)


def _system_has_pip(interpreter: Path) -> bool:
    prefix = interpreter.parent.parent / "lib"
    places = (prefix / "python3" / "dist-packages", prefix / interpreter.name / "site-packages")
    return any((place / "pip" / "_internal").is_dir() for place in places)


def _pip_wheels(interpreter: Path) -> Iterator[Path]:
    library = interpreter.parent.parent / "lib" / interpreter.name
    for place in (library / "ensurepip" / "_bundled", Path("/usr/share/python-wheels")):
        yield from sorted(place.glob("pip-*.whl"))
