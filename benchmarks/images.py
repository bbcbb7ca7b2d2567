"""What is measured of images and snapshots: ours through the client and a real server, beside the programs that people
use for the same work.

A registry and the images in it are there while the server of a row is (`image_server`): `debian`, the smallest system
of this machine's distribution in one layer, and `debian:20`, the same in twenty.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from benchmarks.subject import Subject, expect

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IMAGE_WORKLOADS", "REGISTRY_VARIABLE"]

REGISTRY_VARIABLE: Final = "BENCHMARK_REGISTRY"
"""The variable that tells a worker where the registry is, as `host:port`."""
CAPACITY: Final = 4 << 30
PATIENCE: Final = 120

FILL: Final = """\
import os, sys
folder, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.makedirs(folder)
for number in range(count):
    if number % 100 == 0:
        os.mkdir(f"{folder}/{number // 100}")
    with open(f"{folder}/{number // 100}/{number}", "wb") as file:
        for _ in range(max(1, size >> 20)):
            file.write(os.urandom(min(size, 1 << 20)))
"""
"""Writes files of random bytes; run by a Python of the host, through a mount or below a sandbox's root."""


def _image(name: str) -> str:
    return f"{os.environ[REGISTRY_VARIABLE]}/{name}"


async def image_pull(subject: Subject, image: str) -> float:
    """Return the seconds that it takes to pull and unpack an image of which nothing is there yet."""
    start = time.perf_counter()
    name = f"pulled-{uuid.uuid4().hex[:8]}"
    snapshot = await subject.client.create_snapshot(name, _image(image), CAPACITY, timeout=PATIENCE)
    seconds = time.perf_counter() - start
    expect(snapshot.status, "ready", image)
    await subject.client.delete_snapshot(snapshot.id)
    return seconds


async def skopeo_umoci(_: Subject | None, image: str) -> float:
    """Return the seconds that `skopeo copy` and `umoci unpack` take for the same."""

    def work(folder: str) -> None:
        run = _runner()
        run("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{_image(image)}", f"oci:{folder}/layout:it")
        run("umoci", "unpack", "--image", f"{folder}/layout:it", f"{folder}/bundle")

    return await anyio.to_thread.run_sync(_in_a_folder, work)


async def boot(subject: Subject, image: str) -> float:
    """Return the seconds that it takes to create a sandbox of an image, run `true` in it, and delete it."""
    snapshot = await _snapshot(subject, image)
    start = time.perf_counter()
    sandbox = await subject.client.create_sandbox(snapshot)
    result = await sandbox.run("true")
    await subject.client.delete_sandbox(sandbox.name)
    seconds = time.perf_counter() - start
    expect(result.exit_code, 0, "true")
    return seconds


async def capture(subject: Subject, image: str, files: int, size: int) -> float:
    """Return the seconds that it takes to capture a running sandbox that has written so many files of so many bytes."""
    sandbox = await _filled(subject, image, files, size)
    start = time.perf_counter()
    captured = await subject.client.capture_snapshot(sandbox.name, "captured", timeout=PATIENCE)
    seconds = time.perf_counter() - start
    expect(captured.status, "ready", "capture")
    await subject.client.delete_snapshot(captured.id)
    await subject.client.delete_sandbox(sandbox.name)
    return seconds


async def buildah_commit(_: Subject | None, image: str, files: int, size: int) -> float:
    """Return the seconds that `buildah commit` takes for a container that has written the same."""

    def work() -> float:
        run = _runner()
        container = run("buildah", "from", "--tls-verify=false", _image(image))
        try:
            root = run("buildah", "mount", container)
            run("python3", "-c", FILL, f"{root}/filled", str(files), str(size))
            run("sync", "-f", root)
            start = time.perf_counter()
            made = run("buildah", "commit", "-q", container)
            seconds = time.perf_counter() - start
        finally:
            run("buildah", "rm", container)
        run("buildah", "rmi", made)
        return seconds

    return await anyio.to_thread.run_sync(work)


async def fork(subject: Subject, image: str, times: int) -> float:
    """Return the seconds that it takes to capture a running sandbox and to create so many of the capture."""
    sandbox = await _filled(subject, image, 100, 10_240)
    start = time.perf_counter()
    captured = await subject.client.capture_snapshot(sandbox.name, "forked", timeout=PATIENCE)
    made = [await subject.client.create_sandbox(captured.id) for _ in range(times)]
    seconds = time.perf_counter() - start
    for one in (*made, sandbox):
        await subject.client.delete_sandbox(one.name)
    await subject.client.delete_snapshot(captured.id)
    return seconds


async def create_many(subject: Subject, image: str, times: int) -> float:
    """Return the seconds that it takes to create so many sandboxes of an image."""
    snapshot = await _snapshot(subject, image)
    start = time.perf_counter()
    made = [await subject.client.create_sandbox(snapshot) for _ in range(times)]
    seconds = time.perf_counter() - start
    for one in made:
        await subject.client.delete_sandbox(one.name)
    return seconds


async def _snapshot(subject: Subject, image: str) -> str:
    """The id of the snapshot of an image, which is made when it is first asked for."""
    name = image.replace(":", "-")
    for known in await subject.client.list_snapshots(name_contains=name):
        if known.name == name:
            return str(known.id)
    made = await subject.client.create_snapshot(name, _image(image), CAPACITY, timeout=PATIENCE)
    return str(made.id)


async def _filled(subject: Subject, image: str, files: int, size: int) -> Any:
    sandbox = await subject.client.create_sandbox(await _snapshot(subject, image))
    script = f"""set -e
mkdir /filled; cd /filled
dd if=/dev/urandom of=all bs={size} count={files} iflag=fullblock 2>/dev/null
[ {files} = 1 ] || {{ split -b {size} -a 4 all; rm all; }}
sync -f ."""
    result = await sandbox.run(script, timeout=PATIENCE)
    expect((result.exit_code, result.stderr), (0, ""), "fill")
    return sandbox


def _runner() -> Callable[..., str]:
    def run(*command: str) -> str:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"{' '.join(command[:2])}: {done.stderr[-500:]}")
        return done.stdout.strip()

    return run


def _in_a_folder(work: Callable[[str], None]) -> float:
    folder = tempfile.mkdtemp(prefix="sandbox-aio-benchmark-", dir="/var/tmp")
    try:
        start = time.perf_counter()
        work(folder)
        return time.perf_counter() - start
    finally:
        shutil.rmtree(Path(folder))


IMAGE_WORKLOADS = (image_pull, skopeo_umoci, boot, capture, buildah_commit, fork, create_many)
