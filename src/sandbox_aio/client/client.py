"""The way to a sandbox service: sandboxes and snapshots, and what all their calls share."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self, overload

from ..protocol.http_requests import BoxOptions, ControlPlane, box_changes
from ..protocol.service_requests import DownloadWish, ServiceWish
from ..protocol.snapshot_requests import (
    CaptureWish,
    SnapshotWish,
    delete_call,
    import_call,
    push_call,
    tag_call,
    tags_call,
)
from .dockerfile import DockerfileBuild
from .pending import Pending
from .registries import AsyncRegistries
from .sandbox import AsyncSandbox
from .service import Service
from .service_url import AsyncServiceURL, TokenSource
from .sources import upload_source
from .waiting import wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from types import TracebackType

    from ..models import (
        DownloadContentDisposition,
        DownloadURL,
        ResourceStatus,
        RunConfig,
        ServiceAccess,
        ServiceLoginURL,
        Snapshot,
        SnapshotTag,
    )
    from ..sync import SandboxClient
    from .sources import Source
    from .waiting import ProgressCallback

__all__ = ["AsyncSandboxClient"]

_SNAPSHOT_INTERVAL = 2.0
_PROGRESS_INTERVAL = 0.5
"""Seconds between two looks at a snapshot that is being made; the latter if somebody watches."""


class AsyncSandboxClient:
    """The way to a sandbox service, on asyncio or trio.

    ::

        async with AsyncSandboxClient() as client, client.sandbox() as sandbox:
            result = await sandbox.run("echo hi")

    Use it with `async with`: background work, such as reading the output of commands that run on, belongs to the client
    and ends with it. Without, it works too, but must be closed with `aclose`.

    Every call takes `headers`, which are sent with this call only and override those of the client. Every call is
    bounded in time, is sent again where that is safe and may help, and raises a `SandboxClientError` for whatever goes
    wrong. A call that is cancelled may have been carried out, but for those that make a sandbox, which then delete it.
    """

    def __init__(
        self,
        *,
        api_endpoint: str | None = None,
        timeout: float = 10.0,
        api_key: str | None = None,
        max_retries: int = 3,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            api_endpoint: The URL that the paths of the API follow; `"local"` for a server that this client starts and
                ends. By default it comes from `LANGSMITH_ENDPOINT`, to which `/api/v2/sandboxes` is added.
            timeout: Seconds that the service may take for a call that says nothing else.
            api_key: By default it comes from `LANGSMITH_API_KEY`.
            max_retries: How often a call may be sent again.
            headers: Sent with every call.

        Raises:
            ValueError: The endpoint is not a URL, or the key or a header cannot be sent.
        """
        self._service = Service(
            api_endpoint=api_endpoint, timeout=timeout, api_key=api_key, max_retries=max_retries, headers=headers
        )

    def __repr__(self) -> str:
        return f"AsyncSandboxClient(api_endpoint={self._service.url!r})"

    @property
    def api_endpoint(self) -> str:
        """The URL that the paths of the API follow. The endpoint `local` becomes one when its server has started.

        With `api_key` it is all that a client in another process needs to reach the same sandboxes.
        """
        endpoint: str = self._service.settings["api_endpoint"]
        return endpoint

    @property
    def api_key(self) -> str | None:
        """The key that is sent with every call; that of the embedded server is made by it."""
        key: str | None = self._service.settings["api_key"]
        return key

    @property
    def registries(self) -> AsyncRegistries:
        """Credentials for image registries, which snapshots of private images are made with."""
        return AsyncRegistries(self._service)

    def to_sync(self) -> SandboxClient:
        """A client with the same settings for programs without an event loop. Close both.

        With the endpoint `local`, it uses the server of this client if that runs by now, and else starts its own.
        """
        client: SandboxClient = import_module("sandbox_aio.sync").SandboxClient(**self._service.settings)
        return client

    # --- opening and closing ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._service.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client; see `aclose`."""
        await self._service.leave(kind, error, traceback)

    async def aclose(self) -> None:
        """Let go of all commands, which run on, and close all connections. The embedded server ends, if there is one.

        Calls that are under way fail. Closing again does nothing. It is shielded from cancellation, and quick.
        """
        await self._service.aclose()

    def __del__(self) -> None:
        service = getattr(self, "_service", None)  # missing if `__init__` raised
        if service is not None and service.unclosed:
            warnings.warn(f"{self!r} was never closed: use it in `async with`", ResourceWarning, 2, source=self)

    # --- sandboxes --------------------------------------------------------------------------------------------------

    def sandbox(
        self,
        snapshot_id: str | None = None,
        *,
        snapshot: str | None = None,
        snapshot_name: str | None = None,
        name: str | None = None,
        timeout: float = 30,
        idle_ttl_seconds: int | None = None,
        delete_after_stop_seconds: int | None = None,
        persistent: bool | None = None,
        vcpus: float | None = None,
        mem_bytes: int | None = None,
        fs_capacity_bytes: int | None = None,
        mount_config: Mapping[str, Any] | None = None,
        proxy_config: Mapping[str, Any] | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Pending[AsyncSandbox]:
        """Make a sandbox that is deleted at the end of `async with`.

        `async with client.sandbox() as sandbox` and `async with await client.sandbox() as sandbox` do the same.
        Wherever it is cancelled, no sandbox is left; cleaning up is shielded and takes at most 5 s.

        The arguments and errors are those of `create_sandbox`.
        """
        options = BoxOptions(
            snapshot_id=snapshot_id,
            snapshot=snapshot,
            snapshot_name=snapshot_name,
            idle_ttl_seconds=idle_ttl_seconds,
            delete_after_stop_seconds=delete_after_stop_seconds,
            persistent=persistent,
            vcpus=vcpus,
            mem_bytes=mem_bytes,
            fs_capacity_bytes=fs_capacity_bytes,
            mount_config=mount_config,
            proxy_config=proxy_config,
            run_config=run_config,
        )

        async def create() -> AsyncSandbox:
            record = await self._service.create(
                options, name=name, timeout=timeout, wait_for_ready=True, headers=headers
            )
            return AsyncSandbox(record, self, auto_delete=True)

        return Pending(create, "this sandbox was made already; call client.sandbox() for another one")

    async def create_sandbox(
        self,
        snapshot_id: str | None = None,
        *,
        snapshot: str | None = None,
        snapshot_name: str | None = None,
        name: str | None = None,
        timeout: float = 30,
        wait_for_ready: bool = True,
        idle_ttl_seconds: int | None = None,
        delete_after_stop_seconds: int | None = None,
        persistent: bool | None = None,
        preserve_memory_on_stop: bool | None = None,
        restore_memory: bool | None = None,
        vcpus: float | None = None,
        mem_bytes: int | None = None,
        fs_capacity_bytes: int | None = None,
        labels: Mapping[str, str] | None = None,
        mount_config: Mapping[str, Any] | None = None,
        proxy_config: Mapping[str, Any] | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        access_delegation: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncSandbox:
        """Make a sandbox that stays until it is deleted. Cancelled, it leaves none.

        None leaves the choice to the service.

        Args:
            snapshot_id: UUID of what it starts from.
            snapshot: Instead: a UUID, `name` or `name:tag`. `snapshot_name` is an older spelling.
            name: Unique among your sandboxes.
            timeout: Seconds to wait until it is ready.
            wait_for_ready: False returns at once, with status `provisioning`.
            idle_ttl_seconds: Stop it after so long without activity; 0 for never. A multiple of 60.
            delete_after_stop_seconds: Delete it so long after it stopped; 0 for never. A multiple of 60.
            persistent: False discards all changes whenever it stops.
            preserve_memory_on_stop: Whether stopping suspends its processes.
            restore_memory: Whether to resume the processes of the snapshot.
            vcpus, mem_bytes, fs_capacity_bytes: Its size.
            labels: To find it by.
            mount_config, proxy_config, access_delegation: See the wire protocol, sections 1.12 to 1.14.
            run_config: User, folder and variables of its commands.

        Raises:
            ValueError: The arguments exclude each other, or a lifetime is not a multiple of 60.
            ResourceAlreadyExistsError: The name is taken.
            ResourceCreationError: It could not be made.
            ResourceTimeoutError: It was not ready in time. If you named it, it may become ready yet.
            QuotaExceededError: There are too many.
        """
        options = BoxOptions(
            snapshot_id=snapshot_id,
            snapshot=snapshot,
            snapshot_name=snapshot_name,
            idle_ttl_seconds=idle_ttl_seconds,
            delete_after_stop_seconds=delete_after_stop_seconds,
            persistent=persistent,
            preserve_memory_on_stop=preserve_memory_on_stop,
            restore_memory=restore_memory,
            vcpus=vcpus,
            mem_bytes=mem_bytes,
            fs_capacity_bytes=fs_capacity_bytes,
            labels=labels,
            mount_config=mount_config,
            proxy_config=proxy_config,
            run_config=run_config,
            access_delegation=access_delegation,
        )
        record = await self._service.create(
            options, name=name, timeout=timeout, wait_for_ready=wait_for_ready, headers=headers
        )
        return AsyncSandbox(record, self)

    async def get_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> AsyncSandbox:
        """Get a sandbox by its name.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        record = await self._service.call(lambda control: control.get_box(name), headers)
        return AsyncSandbox(record, self)

    async def list_sandboxes(self, *, headers: Mapping[str, str] | None = None) -> list[AsyncSandbox]:
        """List sandboxes: as many as the service tells at once."""
        records = await self._service.call(ControlPlane.list_boxes, headers)
        return [AsyncSandbox(record, self) for record in records]

    async def update_sandbox(
        self,
        name: str,
        *,
        new_name: str | None = None,
        idle_ttl_seconds: int | None = None,
        delete_after_stop_seconds: int | None = None,
        proxy_config: Mapping[str, Any] | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncSandbox:
        """Change what is given; None leaves a thing as it is.

        Raises:
            ValueError: A lifetime is not a multiple of 60.
            ResourceNotFoundError: There is no such sandbox.
            ResourceNameConflictError: The new name is taken.
            SandboxNotReadyError: Its proxy cannot be changed in its present state.
        """
        changes = box_changes(
            new_name=new_name,
            idle_ttl_seconds=idle_ttl_seconds,
            delete_after_stop_seconds=delete_after_stop_seconds,
            proxy_config=proxy_config,
            run_config=run_config,
        )
        record = await self._service.call(lambda control: control.update_box(name, changes), headers)
        return AsyncSandbox(record, self)

    async def delete_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete a sandbox and everything in it.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        await self._service.call(lambda control: control.delete_box(name), headers)

    async def get_sandbox_status(self, name: str, *, headers: Mapping[str, str] | None = None) -> ResourceStatus:
        """Tell where a sandbox is in its life.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        return await self._service.call(lambda control: control.box_status(name), headers)

    async def wait_for_sandbox(
        self,
        name: str,
        *,
        timeout: float = 120,
        poll_interval: float = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncSandbox:
        """Wait until a sandbox is ready, looking often at first and then every `poll_interval` seconds, at least once.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            ResourceCreationError: It failed.
            ResourceTimeoutError: It was not ready within `timeout` seconds; `last_status` says what it was.
        """
        await wait_until_ready(
            lambda: self.get_sandbox_status(name, headers=headers),
            what="sandbox",
            name=name,
            timeout=timeout,
            poll_interval=poll_interval,
        )
        return await self.get_sandbox(name, headers=headers)

    async def start_sandbox(
        self, name: str, *, timeout: float = 120, headers: Mapping[str, str] | None = None
    ) -> AsyncSandbox:
        """Start a stopped or failed sandbox and wait until it is ready.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            ResourceCreationError: It failed to start.
            ResourceTimeoutError: It was not ready within `timeout` seconds.
        """
        await self._service.call(lambda control: control.start_box(name), headers)
        return await self.wait_for_sandbox(name, timeout=timeout, headers=headers)

    async def stop_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Stop a sandbox: its processes end, its files stay.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        await self._service.call(lambda control: control.stop_box(name), headers)

    # --- services and links -----------------------------------------------------------------------------------------

    @overload
    async def service(
        self,
        name: str,
        port: int,
        *,
        expires_in_seconds: int = 600,
        access: None = None,
        embed_origins: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncServiceURL: ...
    @overload
    async def service(
        self,
        name: str,
        port: int,
        *,
        expires_in_seconds: int = 600,
        access: ServiceAccess,
        embed_origins: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ServiceLoginURL: ...
    async def service(
        self,
        name: str,
        port: int,
        *,
        expires_in_seconds: int = 600,
        access: ServiceAccess | None = None,
        embed_origins: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncServiceURL | ServiceLoginURL:
        """Get the way to an HTTP service on a port of a sandbox. Nothing needs to listen there yet.

        Args:
            expires_in_seconds: How long each token is valid, at most a day. It is renewed for as long as you use it.
            access: Have people log in instead: those allowed on the sandbox (`restricted`), or all members of the
                `workspace`. Not every server offers it.
            embed_origins: Up to 5 origins, such as `https://example.com`, whose pages may show the service in a frame.
            headers: Sent also whenever the token is renewed.

        Raises:
            ValueError: An argument cannot be, at once.
            ResourceNotFoundError: There is no such sandbox.
            ValidationError: The server does not take an argument; `field` says which.
        """
        wish = ServiceWish(port=port, expires_in_seconds=expires_in_seconds, access=access, embed_origins=embed_origins)
        if access is not None:
            return await self._service.call(lambda control: wish.login_call(control, name), headers)
        source = TokenSource(wish, lambda: self._service.call(lambda control: wish.token_call(control, name), headers))
        http = self._service.http
        return AsyncServiceURL._of(source, await source.current(), pool=http.pool, max_retries=http.max_retries)

    async def generate_download_url(
        self,
        name: str,
        path: str,
        *,
        expires_in_seconds: int | None = None,
        content_type: str | None = None,
        content_disposition: DownloadContentDisposition | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> DownloadURL:
        """Make a link to a file of a sandbox. Whoever has it can read the file as it is then, without a key.

        Args:
            path: The file; it need not be there yet.
            expires_in_seconds: None for as long as the sandbox is there.
            content_type: By default what the file's name suggests.
            content_disposition: Whether a browser saves the file (`attachment`, the default) or shows it.

        Raises:
            ValueError: The path is empty, or the time is up already.
            ResourceNotFoundError: There is no such sandbox.
            ValidationError: The server does not take an argument; `field` says which.
        """
        wish = DownloadWish(
            path=path,
            expires_in_seconds=expires_in_seconds,
            content_type=content_type,
            content_disposition=content_disposition,
        )
        return await self._service.call(lambda control: wish.call(control, name), headers)

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def create_snapshot(
        self,
        name: str,
        docker_image: str,
        fs_capacity_bytes: int,
        *,
        tag: str | None = None,
        registry_id: str | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        timeout: float = 60,
        wait: bool = True,
        on_progress: ProgressCallback | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of an image and wait until it is ready. Cancelled, it is made all the same.

        Args:
            name: What it is found by, such as `team/base`.
            docker_image: What the image is called, such as `debian:12` or `registry.example/app@sha256:...`.
            fs_capacity_bytes: The most that its files may hold.
            tag: The tag that is published; by default the image's own, else `latest`.
            registry_id: Whose credentials to use; see `registries`.
            run_config: User, folder and variables of commands, over what the image says.
            timeout: Seconds to wait until it is ready.
            wait: False returns at once; `wait_for_snapshot` waits then.
            on_progress: Called with what the service says of its progress, each time that it is something new.

        Raises:
            ValueError: An argument is empty, or there is no room for any file.
            ResourceCreationError: The image could not be had, or is too large; the message says which.
            ResourceTimeoutError: It was not ready in time, and may become ready yet.
        """
        wish = SnapshotWish(
            name=name,
            docker_image=docker_image,
            fs_capacity_bytes=fs_capacity_bytes,
            tag=tag,
            registry_id=registry_id,
            run_config=run_config,
        )
        made = await self._service.call(wish.call, headers)
        return await self._until_ready(made, timeout, on_progress, headers) if wait else made

    async def create_snapshot_from_dockerfile(
        self,
        name: str,
        dockerfile: str | PathLike[str],
        fs_capacity_bytes: int | None = None,
        *,
        context: str | PathLike[str] = ".",
        build_args: Mapping[str, str] | None = None,
        target: str | None = None,
        on_build_log: Callable[[str], Any] | None = None,
        vcpus: float | None = None,
        mem_bytes: int | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Build an image from a Dockerfile, in a sandbox of its own, and make a snapshot of it. It takes no Docker.

        Cancelled, it stops, and nothing is left. What the builder supports is what buildah (this project's server) or
        BuildKit (others) does, but for secrets, SSH agents and caches, which are not offered to it.

        Args:
            name: What the snapshot is found by.
            dockerfile: Within `context`.
            fs_capacity_bytes: The most that its files may hold.
            context: The folder that is sent, but for what its `.dockerignore` leaves out, and `.git`.
            build_args: For the `ARG` lines.
            target: The stage to end with.
            on_build_log: Called with each piece of the log.
            vcpus, mem_bytes: The size of the sandbox that builds.
            timeout: Seconds that each of the steps may take: the upload, the build, the capture. Most builds need more
                than the default.

        Raises:
            ValueError: The context, the Dockerfile or a line of the `.dockerignore` is none.
            ResourceCreationError: The build failed; the message ends with its log.
            CommandTimeoutError: It took longer than `timeout`.
        """
        build = DockerfileBuild(
            name=name,
            dockerfile=dockerfile,
            context=context,
            fs_capacity_bytes=fs_capacity_bytes,
            build_args=build_args,
            target=target,
            on_build_log=on_build_log,
            vcpus=vcpus,
            mem_bytes=mem_bytes,
            timeout=timeout,
            headers=headers,
        )
        return await build.run(self, self._service)

    async def capture_snapshot(
        self,
        sandbox_name: str,
        name: str,
        *,
        tag: str | None = None,
        docker_image: str | None = None,
        fs_capacity_bytes: int | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        timeout: float = 60,
        on_progress: ProgressCallback | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of a running or stopped sandbox's files and wait until it is ready.

        Cancelled, it is made all the same.

        User and folder of the sandbox's commands are kept, its variables are not: they may be secrets.

        Args:
            name: What it is found by.
            tag: The tag that is published; by default `latest`.
            docker_image: Instead of the sandbox's files, an image of a Docker engine that runs in it.
            fs_capacity_bytes: The most that its files may hold; by default as the sandbox's.
            run_config: User, folder and variables of commands, over what the sandbox has.
            timeout: Seconds to wait until it is ready.
            on_progress: Called with what the service says of its progress, each time that it is something new.

        Raises:
            ValueError: A name is empty, or there is no room for any file.
            ResourceNotFoundError: There is no such sandbox.
            ResourceCreationError: It could not be captured.
            ResourceTimeoutError: It was not ready in time, and may become ready yet.
        """
        wish = CaptureWish(
            name=name,
            tag=tag,
            docker_image=docker_image,
            fs_capacity_bytes=fs_capacity_bytes,
            run_config=run_config,
        )
        made = await self._service.call(lambda control: wish.call(control, sandbox_name), headers)
        return await self._until_ready(made, timeout, on_progress, headers)

    async def import_snapshot(
        self,
        name: str,
        archive: Source,
        *,
        tag: str | None = None,
        fs_capacity_bytes: int | None = None,
        timeout: float = 600,
        on_progress: ProgressCallback | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of an image that is in an archive, and wait until it is ready.

        The archive is sent with little memory, whatever its size. Not every service offers this; sandbox-aio's server
        does. Cancelled, it may be made all the same if the whole archive was sent.

        Args:
            name: What it is found by.
            archive: What `docker save`, `podman save` or `skopeo copy ... oci-archive:FILE` writes: the path of a local
                file, a binary file object, bytes, or an iterable of bytes, async or not.
            tag: The tag that is published; by default `latest`.
            fs_capacity_bytes: The most that its files may hold; by default as the service chooses.
            timeout: Seconds that the service may be silent while it is sent, and then until it is ready.
            on_progress: Called with what the service says of its progress, each time that it is something new.

        Raises:
            ValueError: The name is empty, or there is no room for any file.
            OSError: The local file cannot be read.
            ResourceCreationError: It is not the archive of an image, or too large; the message says which.
            ResourceNotFoundError: The service does not offer it.
            ResourceTimeoutError: It was not ready in time, and may become ready yet.
        """
        source = await upload_source(archive)
        call = import_call(await self._service.control(), name, tag, fs_capacity_bytes, timeout)
        made = await self._service.http.upload(call, source, (b"", b""), headers)
        return await self._until_ready(made, timeout, on_progress, headers)

    async def _until_ready(
        self,
        made: Snapshot,
        timeout: float,
        on_progress: ProgressCallback | None,
        headers: Mapping[str, str] | None,
    ) -> Snapshot:
        if made.status == "ready":
            return made
        interval = _SNAPSHOT_INTERVAL if on_progress is None else _PROGRESS_INTERVAL
        return await self.wait_for_snapshot(
            made.id, timeout=timeout, poll_interval=interval, on_progress=on_progress, headers=headers
        )

    async def delete_snapshot(self, snapshot_id: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete a snapshot by its UUID, with all its tags; or by `name` or `name:tag`, that tag, and the snapshot with
        its last tag. Sandboxes that were made from it keep their files.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
        """
        await self._service.call(lambda control: delete_call(control, snapshot_id), headers)

    async def list_snapshot_tags(self, name: str, *, headers: Mapping[str, str] | None = None) -> list[SnapshotTag]:
        """List the tags of a name, and which snapshot each is for.

        Raises:
            ResourceNotFoundError: There is no snapshot of that name.
        """
        return await self._service.call(lambda control: tags_call(control, name), headers)

    async def tag_snapshot(
        self, snapshot_id: str, tag: str, *, name: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Snapshot:
        """Publish a ready snapshot under another tag, of its own name or another. A tag that is taken moves.

        Not every service offers this; sandbox-aio's server does.

        Raises:
            ResourceNotFoundError: There is no such snapshot, or the service does not offer it.
        """
        return await self._service.call(lambda control: tag_call(control, snapshot_id, tag, name), headers)

    async def push_snapshot(
        self,
        snapshot_id: str,
        image: str,
        *,
        registry_id: str | None = None,
        timeout: float = 600,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Push a ready snapshot to a registry, as an image that runs anywhere; return the digest it has there.

        Not every service offers this; sandbox-aio's server does. Cancelled, it may be pushed all the same.

        Args:
            image: What to call it, such as `registry.example/team/app:1`.
            registry_id: Whose credentials to use; see `registries`.
            timeout: Seconds that it may take.

        Raises:
            ResourceNotFoundError: There is no such snapshot, or the service does not offer it.
        """
        return await self._service.call(
            lambda control: push_call(control, snapshot_id, image, registry_id, timeout), headers
        )

    async def get_snapshot(self, snapshot_id: str, *, headers: Mapping[str, str] | None = None) -> Snapshot:
        """Get a snapshot by its UUID, `name` or `name:tag`.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
        """
        return await self._service.call(lambda control: control.get_snapshot(snapshot_id), headers)

    async def list_snapshots(
        self,
        *,
        name_contains: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[Snapshot]:
        """List snapshots: one page of at most `limit`, from `offset` on."""
        return await self._service.call(
            lambda control: control.list_snapshots(name_contains=name_contains, limit=limit, offset=offset), headers
        )

    async def wait_for_snapshot(
        self,
        snapshot_id: str,
        *,
        timeout: float = 300,
        poll_interval: float = 2.0,
        on_progress: ProgressCallback | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Wait until a snapshot is ready, looking often at first and then every `poll_interval` seconds, at least once.

        Args:
            on_progress: Called with what the service says of its progress, each time that it is something new.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
            ResourceCreationError: It failed.
            ResourceTimeoutError: It was not ready within `timeout` seconds; `last_status` says what it was.
        """
        return await wait_until_ready(
            lambda: self.get_snapshot(snapshot_id, headers=headers),
            what="snapshot",
            name=snapshot_id,
            timeout=timeout,
            poll_interval=poll_interval,
            on_progress=on_progress,
        )
