"""Sandboxes in which images are built from Dockerfiles, and what is taken out of them.

A builder is a sandbox of the machine's own programs, among them buildah, with a profile that lets it mount and make
namespaces within its own. A client puts the context into it, runs the build there as any command, and captures the
image by its name: wire protocol, section 1.10, `docker_image`. `docs/decisions/1601-builds.md` says why.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
from typing import TYPE_CHECKING, Any, Final

import attrs

from sandbox_aio.images.archive import import_archive
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.scratch import scratch
from sandbox_aio.images.unpack import OVERHEAD, UnpackLimits

from .creation import check_fields, structure_body
from .daemon_client import DaemonClient, DaemonError
from .errors import ApiError
from .sandbox import RunConfig, Settings
from .sandboxes import NewSandbox

if TYPE_CHECKING:
    from pathlib import Path

    from sandbox_aio.images.access import RegistryAccess
    from sandbox_aio.images.layers import LayerStore
    from sandbox_aio.images.pulled import PulledImage

    from .sandbox import Sandbox
    from .sandboxes import SandboxRegistry
    from .snapshot_index import SnapshotIndex

__all__ = ["BUILD_PROFILE", "BuilderRequest", "Builds"]

logger: logging.Logger = logging.getLogger("sandbox_aio.server")

BUILD_PROFILE: Final = "build"
PREFIX: Final = "snapshot-builder-"
STORE: Final = "/var/lib/sandbox-build"
"""Where buildah keeps images, in the builder."""
MAX_BUILD: Final = 3600.0
"""Seconds after which a builder is deleted, whatever it does."""
EXPORT_TIMEOUT: Final = 600.0
"""Seconds in which a builder must write an image to a file."""


@attrs.frozen(kw_only=True)
class BuilderRequest:
    """The body of `POST /snapshots/builder`; None means absent."""

    vcpus: float | None = None
    mem_bytes: int | None = None


class Builds:
    """Makes builders and takes images out of them. `offered`: whether the operator lets it."""

    def __init__(
        self, sandboxes: SandboxRegistry, index: SnapshotIndex, access: RegistryAccess, *, offered: bool
    ) -> None:
        self._sandboxes = sandboxes
        self._index = index
        self._access = access
        self._offered = offered
        self._ends: set[asyncio.TimerHandle] = set()

    async def make_builder(self, body: bytes) -> Sandbox:
        """A builder that is ready. Raises ApiError; nothing is left then. Cancellation: nothing is left."""
        if not self._offered:
            raise ApiError(501, "NotImplemented", "this server builds no images: it was started with --no-builds")
        if shutil.which("buildah") is None:
            raise ApiError(501, "NotImplemented", "this server has no buildah; install the package buildah on it")
        _, request = structure_body(body, BuilderRequest)
        check_fields(
            request,
            (
                ("vcpus", lambda request: _positive(request.vcpus)),
                ("mem_bytes", lambda request: _positive(request.mem_bytes)),
            ),
        )
        host = await self._index.find(None)
        assert host is not None
        settings = Settings(
            cpu_millicores=None if request.vcpus is None else round(request.vcpus * 1000),
            mem_bytes=request.mem_bytes,
            fs_capacity_bytes=host.fs_capacity_bytes,
            run_config=RunConfig(env_vars={"BUILDAH_ISOLATION": "chroot"}),
        )
        name = f"{PREFIX}{secrets.token_hex(6)}"
        sandbox = self._sandboxes.create(NewSandbox(name=name, snapshot=host, settings=settings, profile=BUILD_PROFILE))
        try:
            _, address = await self._sandboxes.daemon(sandbox.id)
            async with DaemonClient(address) as daemon:
                for path, text in self._files().items():
                    await daemon.write(path, text.encode())
        except BaseException as error:
            self._sandboxes.abandon(sandbox.id)
            if isinstance(error, DaemonError):
                raise ApiError(500, "Runtime", str(error)) from error
            raise
        self._end_in_time(sandbox.id)
        return self._sandboxes.get(sandbox.id)

    def _files(self) -> dict[str, str]:
        """What buildah reads: where it keeps images, and how registries are reached."""
        registries = [
            'unqualified-search-registries = ["docker.io"]',
            *(
                f"[[registry]]\nlocation = {json.dumps(host)}\ninsecure = true"
                for host in sorted(self._access.insecure)
            ),
        ]
        return {
            "/etc/containers/policy.json": json.dumps({"default": [{"type": "insecureAcceptAnything"}]}),
            "/etc/containers/registries.conf": "\n".join(registries) + "\n",
            "/etc/containers/storage.conf": (
                f'[storage]\ndriver = "vfs"\ngraphroot = "{STORE}/store"\nrunroot = "{STORE}/run"\n'
            ),
        }

    def _end_in_time(self, id: str) -> None:
        loop = asyncio.get_running_loop()

        def end() -> None:
            self._ends.discard(handle)
            if self._sandboxes.knows(id):
                logger.warning("the builder %s is deleted after %g s", id, MAX_BUILD)
                self._sandboxes.abandon(id)

        handle = loop.call_later(MAX_BUILD, end)
        self._ends.add(handle)

    async def take_image(
        self,
        sandbox: Sandbox,
        image: str,
        work: Path,
        *,
        store: LayerStore,
        capacity: int,
        pins: set[str],
    ) -> PulledImage:
        """Bring an image that was built in a builder into the store. `work`: see `scratch`.

        Raises ImageError, ApiError; OSError when the disk is full or fails.
        """
        archive = f"{STORE}/image-{secrets.token_hex(6)}.tar"
        _, address = await self._sandboxes.daemon(sandbox.id)
        async with scratch(work, "built") as folder:
            target = folder / "archive"
            try:
                async with DaemonClient(address) as daemon:
                    code, output = await daemon.run(
                        ["buildah", "push", "-q", image, f"oci-archive:{archive}"], timeout=EXPORT_TIMEOUT
                    )
                    if code:
                        message = f"the image {image!r} cannot be taken out: {output[-500:]}"
                        raise ImageError(message, kind="ImageExport")
                    await daemon.read(archive, target, max_bytes=capacity + OVERHEAD)
            except DaemonError as error:
                raise ImageError(str(error), kind="ImageExport") from error
            limits = UnpackLimits(max_bytes=capacity)
            return await import_archive(target, store=store, limits=limits, pins=pins, name="the built image")

    def close(self) -> None:
        """Let go of the timers."""
        for handle in self._ends:
            handle.cancel()


def _positive(value: Any) -> str | None:
    return None if value is None or value > 0 else "must be more than nothing"
