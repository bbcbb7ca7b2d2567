"""A real registry for tests, and images made by programs that are not ours."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["PASSWORD", "USER", "Registry", "make_image", "registry"]

USER, PASSWORD = "alice", "open sesame"
HTPASSWD = "alice:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
"""What htpasswd -B makes of the two."""
READY_DEADLINE = 20.0


@attrs.frozen(kw_only=True)
class Registry:
    """A registry that is up."""

    host: str
    """`127.0.0.1:PORT`, the first part of an image's name."""
    data: Path
    options: tuple[str, ...]
    """What skopeo needs to reach it."""

    def push(self, layout: Path, name: str, *options: str, tag: str = "latest") -> str:
        """Have skopeo push an image from an OCI layout; return the name to pull it by."""
        image = f"{self.host}/{name}:{tag}"
        run(
            "skopeo",
            "copy",
            "-q",
            *options,
            *(f"--dest-{o}" for o in self.options),
            f"oci:{layout}:it",
            f"docker://{image}",
        )
        return image


@contextmanager
def registry(
    folder: Path,
    *,
    users: bool = False,
    tls: tuple[Path, Path] | None = None,
    token: Mapping[str, str] | None = None,
    address: str = "127.0.0.1",
) -> Iterator[Registry]:
    """Run Debian's `docker-registry`, with its data in `folder`.

    `users`: only `USER` with `PASSWORD` may use it. `tls`: a certificate and its key, PEM. `token`: its settings for
    tokens: `realm`, `service`, `issuer`, `rootcertbundle`. `address`: where it listens.
    """
    with socket.socket() as free:
        free.bind((address, 0))
        host = f"{address}:{free.getsockname()[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    http: dict[str, object] = {"addr": host}
    if tls is not None:
        http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    settings: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
        "http": http,
    }
    if users:
        (folder / "htpasswd").write_text(HTPASSWD)
        settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    if token is not None:
        settings["auth"] = {"token": dict(token)}
    (folder / "config.yml").write_text(json.dumps(settings))  # which is YAML too
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        _wait(f"{'https' if tls else 'http'}://{host}/v2/", process, folder / "registry.log")
        options = ["tls-verify=false"] + ([f"creds={USER}:{PASSWORD}"] if users else [])
        yield Registry(host=host, data=folder / "data", options=tuple(options))
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, verify=False)
        except httpx.TransportError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"the registry is not ready: {log.read_text()}")


def make_image(
    folder: Path, layers: Sequence[Callable[[Path], None]], config: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Make an OCI layout with umoci: each of `layers` changes the root file system that the ones before have left.

    `config`: options of `umoci config`, such as `{"config.user": ["alice"]}`. The image in it is called `it`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = folder / "layout"
    run("umoci", "init", "--layout", str(layout))
    run("umoci", "new", "--image", f"{layout}:it")
    for number, change in enumerate(layers):
        bundle = folder / f"bundle-{number}"
        run("umoci", "unpack", "--image", f"{layout}:it", str(bundle))
        change(bundle / "rootfs")
        run("umoci", "repack", "--image", f"{layout}:it", str(bundle))
        run("rm", "-rf", str(bundle))
    options = [word for name, values in (config or {}).items() for value in values for word in (f"--{name}", value)]
    if options:
        run("umoci", "config", "--image", f"{layout}:it", *options)
    return layout


def run(*command: str | Path) -> str:
    """Run a program that must succeed; return its output."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout
