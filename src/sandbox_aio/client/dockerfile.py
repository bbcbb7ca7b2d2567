"""Builds a snapshot from a Dockerfile: packs the context, has it built in a sandbox, and captures the image."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio.to_thread
import attrs

from ..errors import ResourceCreationError
from ..protocol.dockerfile import BuildWish, IgnoreRules, builder_call
from .sandbox import AsyncSandbox

if TYPE_CHECKING:
    from ..models import Snapshot
    from .client import AsyncSandboxClient
    from .service import Service

__all__ = ["DockerfileBuild"]

LOG_TAIL = 4000
"""Characters of the log that the error of a failed build carries."""


@attrs.frozen(kw_only=True)
class DockerfileBuild:
    """What to build, and how; see `AsyncSandboxClient.create_snapshot_from_dockerfile`."""

    name: str
    dockerfile: str | os.PathLike[str]
    context: str | os.PathLike[str]
    fs_capacity_bytes: int | None
    build_args: Mapping[str, str] | None
    target: str | None
    on_build_log: Callable[[str], Any] | None
    vcpus: float | None
    mem_bytes: int | None
    timeout: float
    headers: Mapping[str, str] | None

    async def run(self, client: AsyncSandboxClient, service: Service) -> Snapshot:
        """Do it. Cancellation: the sandbox that builds is deleted, and the build with it."""
        folder, dockerfile = await anyio.to_thread.run_sync(self._resolve)
        number = uuid4().hex
        wish = BuildWish(
            folder=f"/var/lib/langsmith-build/{number[:12]}",
            image=f"langsmith-snapshot-build:{number}",
            dockerfile=dockerfile,
            build_args=self.build_args or {},
            target=self.target,
        )
        with tempfile.TemporaryDirectory(prefix="sandbox-aio-build-") as temporary:
            archive = Path(temporary, "context.tar")
            await anyio.to_thread.run_sync(pack_context, folder, dockerfile, archive)
            record = await service.call(lambda control: builder_call(control, self.vcpus, self.mem_bytes), self.headers)
            if record is not None:
                async with AsyncSandbox(record, client, auto_delete=True) as builder:
                    return await self._build(client, builder, archive, wish, wish.buildah_script)
            async with client.sandbox(
                name=f"snapshot-builder-{number[:12]}",
                vcpus=self.vcpus,
                mem_bytes=self.mem_bytes,
                fs_capacity_bytes=self.fs_capacity_bytes,
                timeout=self.timeout,
                headers=self.headers,
            ) as builder:
                return await self._build(client, builder, archive, wish, wish.buildkit_script)

    async def _build(
        self, client: AsyncSandboxClient, builder: AsyncSandbox, archive: Path, wish: BuildWish, script: str
    ) -> Snapshot:
        await builder.upload(wish.archive, archive, timeout=self.timeout, headers=self.headers)
        unpacked = await builder.run(wish.unpack_script, timeout=self.timeout, headers=self.headers)
        if not unpacked.success:
            raise ResourceCreationError(f"the context cannot be unpacked: {unpacked.stderr[-LOG_TAIL:]}", "snapshot")
        built = await builder.run(
            script,
            timeout=self.timeout,
            on_stdout=self.on_build_log,
            on_stderr=self.on_build_log,
            headers=self.headers,
        )
        if not built.success:
            log = (built.stdout + built.stderr)[-LOG_TAIL:].strip()
            raise ResourceCreationError(f"the build failed with exit code {built.exit_code}:\n{log}", "snapshot")
        return await client.capture_snapshot(
            builder.name,
            self.name,
            docker_image=wish.image,
            fs_capacity_bytes=self.fs_capacity_bytes,
            timeout=self.timeout,
            headers=self.headers,
        )

    def _resolve(self) -> tuple[Path, str]:
        folder = Path(self.context).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"the context {folder} is no folder")
        dockerfile = (folder / Path(self.dockerfile).expanduser()).resolve()
        if not dockerfile.is_file():
            raise ValueError(f"there is no Dockerfile {dockerfile}")
        if not dockerfile.is_relative_to(folder):
            raise ValueError(f"the Dockerfile {dockerfile} is not in the context {folder}")
        return folder, dockerfile.relative_to(folder).as_posix()


def pack_context(folder: Path, dockerfile: str, archive: Path) -> None:
    """Pack what is to be built into a tar file, but for what is ignored, and `.git`. Blocks.

    The Dockerfile is always in it. Links stay links; what is neither file, folder nor link is left out. Owners are
    root, so that the same files give the same layers for everybody.

    Raises:
        ValueError: A line of the `.dockerignore` is no pattern.
    """
    rules = IgnoreRules(_ignored(folder, dockerfile))

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for here, folders, files in os.walk(folder):
            way = Path(here).relative_to(folder).as_posix()
            prefix = "" if way == "." else f"{way}/"
            if not prefix:
                folders[:] = [name for name in folders if name != ".git"]
            for name in sorted((*folders, *files)):
                path = Path(here, name)
                if rules.excludes(prefix + name) and prefix + name != dockerfile:
                    continue
                if path.is_symlink() or path.is_dir() or path.is_file():
                    tar.add(path, f"{prefix}{name}", recursive=False, filter=anonymous)
            if not rules.may_keep_below:
                folders[:] = [
                    name
                    for name in folders
                    if not rules.excludes(prefix + name) or dockerfile.startswith(f"{prefix}{name}/")
                ]


def _ignored(folder: Path, dockerfile: str) -> str:
    for path in (folder / f"{dockerfile}.dockerignore", folder / ".dockerignore"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return ""
