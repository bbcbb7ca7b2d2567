"""The snapshot `host`: what of the machine is in it, and that Python and pip work there."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sandbox_aio.runtimes.namespaces import python_environment, snapshot_host
from tests.runtimes.machine import machine as machines

if TYPE_CHECKING:
    from tests.runtimes.machine import Sandbox


def wheel(folder: Path) -> bytes:
    """Make a wheel of a module `greeting` and of a program `greet`, by hand."""
    path = folder / "greeting-1.0-py3-none-any.whl"
    info = "greeting-1.0.dist-info"
    files = {
        "greeting.py": "def main():\n    print('hello from a wheel')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ngreet = greeting:main\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return path.read_bytes()


def put(sandbox: Sandbox, path: str, data: bytes) -> None:
    """Write a file inside."""
    sandbox.sh(f"base64 -d > {path} <<'END'\n{base64.encodebytes(data).decode()}END")


def test_python_and_pip_are_there(box: Sandbox) -> None:
    assert box.sh("which python python3 pip").split() == [
        f"/opt/venv/bin/{name}" for name in ("python", "python3", "pip")
    ]
    assert box.python("import sys, json, ssl, sqlite3; print(sys.prefix)") == "/opt/venv"
    assert "/opt/venv" in box.sh("pip --version") or "/usr/" in box.sh("pip --version")


@pytest.mark.timeout(120)
def test_pip_installs_a_wheel(sandbox: Sandbox, tmp_path: Path) -> None:
    put(sandbox, "/tmp/greeting-1.0-py3-none-any.whl", wheel(tmp_path))
    output = sandbox.sh("pip install --no-index --disable-pip-version-check /tmp/greeting-1.0-py3-none-any.whl 2>&1")
    assert "Successfully installed greeting-1.0" in output
    assert sandbox.sh("greet; python -c 'import greeting; greeting.main()'") == "hello from a wheel\nhello from a wheel"
    sandbox.sh("pip uninstall -y greeting")
    assert sandbox.attempt("greet")[0] != 0


@pytest.mark.root
@pytest.mark.timeout(120)
def test_pip_installs_a_wheel_for_another_user(sandbox: Sandbox, tmp_path: Path) -> None:
    put(sandbox, "/tmp/greeting-1.0-py3-none-any.whl", wheel(tmp_path))
    run = "cd && setpriv --reuid user --regid user --init-groups -- env HOME=/home/user"
    sandbox.sh(f"{run} python -m venv --system-site-packages --without-pip /home/user/own")
    sandbox.sh(f"{run} pip install --no-index --user /tmp/greeting-1.0-py3-none-any.whl 2>&1")
    assert sandbox.sh(f"{run} python -c 'import greeting; greeting.main()'") == "hello from a wheel"


def test_pip_is_brought_along_where_the_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = python_environment.system_interpreter()
    assert interpreter is not None
    monkeypatch.setattr(python_environment, "_system_has_pip", lambda interpreter: False)
    python_environment.lay(tmp_path)
    packages = tmp_path / "opt/venv/lib" / interpreter.name / "site-packages"
    assert (packages / "pip/__main__.py").is_file()


def test_usual_programs_run(box: Sandbox) -> None:
    assert box.sh("ls / | wc -l && echo x | sed s/x/y/ && awk 'BEGIN {print 1+1}' && date +%Z && locale -a | head -1")
    assert box.sh("getent passwd user root | cut -d: -f1,6").splitlines() == ["user:/home/user", "root:/root"]
    assert box.sh("getent hosts localhost; getent services http/tcp | head -1; getent protocols tcp | head -1")
    assert box.sh("perl -e 'print 42'") == "42"
    assert box.sh("cat /etc/os-release") == Path("/etc/os-release").read_text().strip()


def test_certificates_are_there(box: Sandbox) -> None:
    if Path("/etc/ssl/certs/ca-certificates.crt").exists():
        assert (
            box.python("import ssl; print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 10)") == "True"
        )


def test_apt_works_as_far_as_it_can_without_a_network(sandbox: Sandbox) -> None:
    assert "apt" in sandbox.sh("apt-get --version")
    assert sandbox.sh("dpkg -l 2>&1; apt-get check 2>&1")


def test_nothing_secret_is_in_the_skeleton(tmp_path: Path) -> None:
    """Whatever is copied from /etc is readable by everybody on the host, and none of it is on this list."""
    skeleton = snapshot_host.build_skeleton(tmp_path)
    names = {str(path.relative_to(skeleton)) for path in skeleton.rglob("*")}
    assert "etc/passwd" in names
    for secret in (
        "shadow",
        "gshadow",
        "sudoers",
        "ssh",
        "pip.conf",
        "machine-id-",
        "krb5.keytab",
        "NetworkManager",
        "npmrc",
    ):
        assert f"etc/{secret}" not in names
    assert not any(name.startswith(("etc/ssl/private", "etc/apt/auth", "etc/apt/sources")) for name in names)
    assert (skeleton / "etc/machine-id").read_text() == ""
    for path in (skeleton / "etc").rglob("*"):
        if path.is_symlink():
            target = os.path.normpath(path.parent / path.readlink())
            assert target.startswith((str(skeleton), "/usr/", "/proc/", "/run")), path
        host = Path("/", path.relative_to(skeleton))
        if (
            path.is_file()
            and not path.is_symlink()
            and host.is_file()
            and str(host) not in ("/etc/fstab", "/etc/hosts")
        ):
            content = path.read_bytes()
            assert content == b"" or host.stat().st_mode & stat.S_IROTH, path


def test_the_skeleton_is_built_once_and_again_when_the_host_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = snapshot_host.build_skeleton(tmp_path)
    (first / "marker").touch()
    assert snapshot_host.build_skeleton(tmp_path) == first
    assert (first / "marker").exists()
    monkeypatch.setattr(snapshot_host, "_VERSION", "another")
    second = snapshot_host.build_skeleton(tmp_path)
    assert second != first
    assert not first.exists()
    assert [path.name for path in second.parent.iterdir()] == [second.name]


def test_a_directory_for_the_machine_s_own_programs_is_a_link_or_an_overlay(tmp_path: Path) -> None:
    skeleton = snapshot_host.build_skeleton(tmp_path)
    for name in snapshot_host.SYSTEM_DIRECTORIES:
        host = Path("/", name)
        if host.is_symlink():
            assert (skeleton / name).readlink() == host.readlink()
            assert name not in snapshot_host.system_directories()
        elif host.is_dir():
            assert list((skeleton / name).iterdir()) == []
            assert name in snapshot_host.system_directories()


@pytest.mark.root
def test_a_state_directory_whose_file_system_cannot_map_ids(tmp_path: Path) -> None:
    """Then all sandboxes have one range of ids, and the skeleton belongs to it on the disk."""
    from sandbox_aio.runtimes.namespaces import syscalls

    place = tmp_path / "ramfs"
    place.mkdir()
    syscalls.mount("ramfs", str(place), "ramfs")
    try:
        with machines(place / "state") as made:
            capabilities = made.run(made.runtime.probe())
            assert "share one range" in capabilities.notes[0]  # type: ignore[union-attr]
            with made.sandbox() as first, made.sandbox() as second:
                for sandbox in (first, second):
                    assert sandbox.sh("stat -c %u /etc/passwd /home/user /usr").split() == ["0", "1000", "0"]
                    sandbox.sh("echo mine > /etc/passwd.new; rm /etc/passwd; touch /usr/new")
                maps = {sandbox.sh("cat /proc/self/uid_map") for sandbox in (first, second)}
                assert len(maps) == 1
                assert int(maps.pop().split()[1]) >= 2_000_000_000
    finally:
        syscalls.unmount(str(place), syscalls.MNT_DETACH)
