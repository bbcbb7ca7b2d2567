"""The sync clients: the async ones of `sandbox_aio.client`, with calls that block.

Written by tools/gen_sync.py from src/sandbox_aio/client/. Do not edit: run `python tools/gen_sync.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import attrs

from ..client.client import AsyncSandboxClient
from ..client.command import AsyncCommandHandle
from ..client.registries import AsyncRegistries
from ..client.sandbox import AsyncSandbox
from ..client.service_url import AsyncServiceResponse, AsyncServiceURL
from ..client.service_websocket import AsyncServiceWebSocket
from ..client.tunnel import AsyncTunnel
from ..models import OutputChunk
from ._bridge import Batched, Managed, Root, Twin, unframed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    import httpx

    from ..client.sources import Source
    from ..client.targets import Target
    from ..models import (
        DownloadContentDisposition,
        DownloadURL,
        ExecutionResult,
        FileChunk,
        FileStat,
        GlobResult,
        GrepResult,
        Registry,
        RegistryPage,
        ResourceStatus,
        RunConfig,
        ServiceAccess,
        ServiceLoginURL,
        Snapshot,
        SnapshotTag,
        TunnelStatistics,
    )
    from ._portal import Portal

__all__ = [
    "CommandHandle",
    "Registries",
    "Sandbox",
    "SandboxClient",
    "ServiceResponse",
    "ServiceURL",
    "ServiceWebSocket",
    "Tunnel",
]


class SandboxClient(Root[AsyncSandboxClient]):
    """The way to a sandbox service.

    ::

        with SandboxClient() as client, client.sandbox() as sandbox:
            result = sandbox.run("echo hi")

    Use it with `with`: background work, such as reading the output of commands that run on, belongs to the client
    and ends with it. Without, it works too, but must be closed with `close`.

    Every call takes `headers`, which are sent with this call only and override those of the client. Every call is
    bounded in time, is sent again where that is safe and may help, and raises a `SandboxClientError` for whatever goes
    wrong. A call that is interrupted may have been carried out, but for those that make a sandbox, which then delete
    it.

    The client runs on a thread of its own, or on that of `portal`, which other clients may share. Any thread may use
    it. An interrupt, such as Ctrl-C, cancels the call that it meets, and goes on when that has cleaned up.
    """

    def __init__(
        self,
        *,
        api_endpoint: str | None = None,
        timeout: float = 10.0,
        api_key: str | None = None,
        max_retries: int = 3,
        headers: Mapping[str, str] | None = None,
        portal: Portal | None = None,
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
        client = AsyncSandboxClient(
            api_endpoint=api_endpoint, timeout=timeout, api_key=api_key, max_retries=max_retries, headers=headers
        )
        super().__init__(client, portal)

    @property
    def api_endpoint(self) -> str:
        """The URL that the paths of the API follow. The endpoint `local` becomes one when its server has started.

        With `api_key` it is all that a client in another process needs to reach the same sandboxes.
        """
        return self._async.api_endpoint

    @property
    def api_key(self) -> str | None:
        """The key that is sent with every call; that of the embedded server is made by it."""
        return self._async.api_key

    @property
    def registries(self) -> Registries:
        """Credentials for image registries, which snapshots of private images are made with."""
        return Registries(self._bridge, self._async.registries)

    def to_async(self) -> AsyncSandboxClient:
        """A client with the same settings for programs with an event loop. Close both."""
        return AsyncSandboxClient(**self._async._service.settings)

    def close(self) -> None:
        """Let go of all commands, which run on, and close all connections. The embedded server ends, if there is one.

        Calls under way in other threads fail. Closing again does nothing. It is shielded from interrupts, and quick.
        """
        with unframed:
            self._bridge.close()

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
    ) -> Sandbox:
        """Make a sandbox that is deleted at the end of `with`.

        Without `with`, it stays until it is deleted.
        Wherever it is interrupted, no sandbox is left; cleaning up is shielded and takes at most 5 s.

        The arguments and errors are those of `create_sandbox`.
        """
        with unframed:
            twin = self._bridge.call_owning(
                self._async.sandbox,
                snapshot_id,
                snapshot=snapshot,
                snapshot_name=snapshot_name,
                name=name,
                timeout=timeout,
                idle_ttl_seconds=idle_ttl_seconds,
                delete_after_stop_seconds=delete_after_stop_seconds,
                persistent=persistent,
                vcpus=vcpus,
                mem_bytes=mem_bytes,
                fs_capacity_bytes=fs_capacity_bytes,
                mount_config=mount_config,
                proxy_config=proxy_config,
                run_config=run_config,
                headers=headers,
            )
            return Sandbox(self._bridge, twin)

    def create_sandbox(
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
    ) -> Sandbox:
        """Make a sandbox that stays until it is deleted. Interrupted, it leaves none.

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
        with unframed:
            twin = self._bridge.call(
                self._async.create_sandbox,
                snapshot_id,
                snapshot=snapshot,
                snapshot_name=snapshot_name,
                name=name,
                timeout=timeout,
                wait_for_ready=wait_for_ready,
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
                headers=headers,
            )
            return Sandbox(self._bridge, twin)

    def get_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> Sandbox:
        """Get a sandbox by its name.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        with unframed:
            twin = self._bridge.call(self._async.get_sandbox, name, headers=headers)
            return Sandbox(self._bridge, twin)

    def list_sandboxes(self, *, headers: Mapping[str, str] | None = None) -> list[Sandbox]:
        """List sandboxes: as many as the service tells at once."""
        with unframed:
            twins = self._bridge.call(self._async.list_sandboxes, headers=headers)
            return [Sandbox(self._bridge, twin) for twin in twins]

    def update_sandbox(
        self,
        name: str,
        *,
        new_name: str | None = None,
        idle_ttl_seconds: int | None = None,
        delete_after_stop_seconds: int | None = None,
        proxy_config: Mapping[str, Any] | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Sandbox:
        """Change what is given; None leaves a thing as it is.

        Raises:
            ValueError: A lifetime is not a multiple of 60.
            ResourceNotFoundError: There is no such sandbox.
            ResourceNameConflictError: The new name is taken.
            SandboxNotReadyError: Its proxy cannot be changed in its present state.
        """
        with unframed:
            twin = self._bridge.call(
                self._async.update_sandbox,
                name,
                new_name=new_name,
                idle_ttl_seconds=idle_ttl_seconds,
                delete_after_stop_seconds=delete_after_stop_seconds,
                proxy_config=proxy_config,
                run_config=run_config,
                headers=headers,
            )
            return Sandbox(self._bridge, twin)

    def delete_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete a sandbox and everything in it.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        with unframed:
            self._bridge.call(self._async.delete_sandbox, name, headers=headers)

    def get_sandbox_status(self, name: str, *, headers: Mapping[str, str] | None = None) -> ResourceStatus:
        """Tell where a sandbox is in its life.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        with unframed:
            return self._bridge.call(self._async.get_sandbox_status, name, headers=headers)

    def wait_for_sandbox(
        self, name: str, *, timeout: float = 120, poll_interval: float = 1.0, headers: Mapping[str, str] | None = None
    ) -> Sandbox:
        """Wait until a sandbox is ready, looking often at first and then every `poll_interval` seconds, at least once.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            ResourceCreationError: It failed.
            ResourceTimeoutError: It was not ready within `timeout` seconds; `last_status` says what it was.
        """
        with unframed:
            twin = self._bridge.call(
                self._async.wait_for_sandbox, name, timeout=timeout, poll_interval=poll_interval, headers=headers
            )
            return Sandbox(self._bridge, twin)

    def start_sandbox(self, name: str, *, timeout: float = 120, headers: Mapping[str, str] | None = None) -> Sandbox:
        """Start a stopped or failed sandbox and wait until it is ready.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
            ResourceCreationError: It failed to start.
            ResourceTimeoutError: It was not ready within `timeout` seconds.
        """
        with unframed:
            twin = self._bridge.call(self._async.start_sandbox, name, timeout=timeout, headers=headers)
            return Sandbox(self._bridge, twin)

    def stop_sandbox(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Stop a sandbox: its processes end, its files stay.

        Raises:
            ResourceNotFoundError: There is no such sandbox.
        """
        with unframed:
            self._bridge.call(self._async.stop_sandbox, name, headers=headers)

    @overload
    def service(
        self,
        name: str,
        port: int,
        *,
        expires_in_seconds: int = 600,
        access: None = None,
        embed_origins: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ServiceURL: ...

    @overload
    def service(
        self,
        name: str,
        port: int,
        *,
        expires_in_seconds: int = 600,
        access: ServiceAccess,
        embed_origins: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ServiceLoginURL: ...

    def service(
        self,
        name: str,
        port: int,
        *,
        expires_in_seconds: int = 600,
        access: ServiceAccess | None = None,
        embed_origins: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ServiceURL | ServiceLoginURL:
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
        with unframed:
            twin: Any = self._bridge.call(
                self._async.service,
                name,
                port,
                expires_in_seconds=expires_in_seconds,
                access=access,
                embed_origins=embed_origins,
                headers=headers,
            )
            return ServiceURL(self._bridge, twin) if isinstance(twin, AsyncServiceURL) else twin

    def generate_download_url(
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
        with unframed:
            return self._bridge.call(
                self._async.generate_download_url,
                name,
                path,
                expires_in_seconds=expires_in_seconds,
                content_type=content_type,
                content_disposition=content_disposition,
                headers=headers,
            )

    def create_snapshot(
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
        on_progress: Callable[[str], object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of an image and wait until it is ready. Interrupted, it is made all the same.

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
        with unframed:
            return self._bridge.call_relaying(
                ["on_progress"],
                self._async.create_snapshot,
                name,
                docker_image,
                fs_capacity_bytes,
                tag=tag,
                registry_id=registry_id,
                run_config=run_config,
                timeout=timeout,
                wait=wait,
                on_progress=on_progress,
                headers=headers,
            )

    def create_snapshot_from_dockerfile(
        self,
        name: str,
        dockerfile: str | PathLike[str],
        fs_capacity_bytes: int | None = None,
        *,
        context: str | PathLike[str] = ".",
        build_args: Mapping[str, str] | None = None,
        target: str | None = None,
        on_build_log: Callable[[str], object] | None = None,
        vcpus: float | None = None,
        mem_bytes: int | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Build an image from a Dockerfile, in a sandbox of its own, and make a snapshot of it. It takes no Docker.

        Interrupted, it stops, and nothing is left. What the builder supports is what buildah (this project's server) or
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
        with unframed:
            return self._bridge.call_relaying(
                ["on_build_log"],
                self._async.create_snapshot_from_dockerfile,
                name,
                dockerfile,
                fs_capacity_bytes,
                context=context,
                build_args=build_args,
                target=target,
                on_build_log=on_build_log,
                vcpus=vcpus,
                mem_bytes=mem_bytes,
                timeout=timeout,
                headers=headers,
            )

    def capture_snapshot(
        self,
        sandbox_name: str,
        name: str,
        *,
        tag: str | None = None,
        docker_image: str | None = None,
        fs_capacity_bytes: int | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        timeout: float = 60,
        on_progress: Callable[[str], object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of a running or stopped sandbox's files and wait until it is ready.

        Interrupted, it is made all the same.

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
        with unframed:
            return self._bridge.call_relaying(
                ["on_progress"],
                self._async.capture_snapshot,
                sandbox_name,
                name,
                tag=tag,
                docker_image=docker_image,
                fs_capacity_bytes=fs_capacity_bytes,
                run_config=run_config,
                timeout=timeout,
                on_progress=on_progress,
                headers=headers,
            )

    def import_snapshot(
        self,
        name: str,
        archive: Source,
        *,
        tag: str | None = None,
        fs_capacity_bytes: int | None = None,
        timeout: float = 600,
        on_progress: Callable[[str], object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of an image that is in an archive, and wait until it is ready.

        The archive is sent with little memory, whatever its size. Not every service offers this; sandbox-aio's server
        does. Interrupted, it may be made all the same if the whole archive was sent.

        Args:
            name: What it is found by.
            archive: What `docker save`, `podman save` or `skopeo copy ... oci-archive:FILE` writes: the path of a local
                file, a binary file object, bytes, or an iterable of bytes.
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
        with unframed:
            return self._bridge.call_relaying(
                ["on_progress"],
                self._async.import_snapshot,
                name,
                archive,
                tag=tag,
                fs_capacity_bytes=fs_capacity_bytes,
                timeout=timeout,
                on_progress=on_progress,
                headers=headers,
            )

    def delete_snapshot(self, snapshot_id: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete a snapshot by its UUID, with all its tags; or by `name` or `name:tag`, that tag, and the snapshot with
        its last tag. Sandboxes that were made from it keep their files.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
        """
        with unframed:
            self._bridge.call(self._async.delete_snapshot, snapshot_id, headers=headers)

    def list_snapshot_tags(self, name: str, *, headers: Mapping[str, str] | None = None) -> list[SnapshotTag]:
        """List the tags of a name, and which snapshot each is for.

        Raises:
            ResourceNotFoundError: There is no snapshot of that name.
        """
        with unframed:
            return self._bridge.call(self._async.list_snapshot_tags, name, headers=headers)

    def tag_snapshot(
        self, snapshot_id: str, tag: str, *, name: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Snapshot:
        """Publish a ready snapshot under another tag, of its own name or another. A tag that is taken moves.

        Not every service offers this; sandbox-aio's server does.

        Raises:
            ResourceNotFoundError: There is no such snapshot, or the service does not offer it.
        """
        with unframed:
            return self._bridge.call(self._async.tag_snapshot, snapshot_id, tag, name=name, headers=headers)

    def push_snapshot(
        self,
        snapshot_id: str,
        image: str,
        *,
        registry_id: str | None = None,
        timeout: float = 600,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """Push a ready snapshot to a registry, as an image that runs anywhere; return the digest it has there.

        Not every service offers this; sandbox-aio's server does. Interrupted, it may be pushed all the same.

        Args:
            image: What to call it, such as `registry.example/team/app:1`.
            registry_id: Whose credentials to use; see `registries`.
            timeout: Seconds that it may take.

        Raises:
            ResourceNotFoundError: There is no such snapshot, or the service does not offer it.
        """
        with unframed:
            return self._bridge.call(
                self._async.push_snapshot, snapshot_id, image, registry_id=registry_id, timeout=timeout, headers=headers
            )

    def get_snapshot(self, snapshot_id: str, *, headers: Mapping[str, str] | None = None) -> Snapshot:
        """Get a snapshot by its UUID, `name` or `name:tag`.

        Raises:
            ResourceNotFoundError: There is no such snapshot.
        """
        with unframed:
            return self._bridge.call(self._async.get_snapshot, snapshot_id, headers=headers)

    def list_snapshots(
        self,
        *,
        name_contains: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> list[Snapshot]:
        """List snapshots: one page of at most `limit`, from `offset` on."""
        with unframed:
            return self._bridge.call(
                self._async.list_snapshots, name_contains=name_contains, limit=limit, offset=offset, headers=headers
            )

    def wait_for_snapshot(
        self,
        snapshot_id: str,
        *,
        timeout: float = 300,
        poll_interval: float = 2.0,
        on_progress: Callable[[str], object] | None = None,
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
        with unframed:
            return self._bridge.call_relaying(
                ["on_progress"],
                self._async.wait_for_snapshot,
                snapshot_id,
                timeout=timeout,
                poll_interval=poll_interval,
                on_progress=on_progress,
                headers=headers,
            )


class CommandHandle(Batched[AsyncCommandHandle, OutputChunk]):
    """A running command.

    Iterate over it for the output as it comes, in batches (`next_batch`) or chunk by chunk (`for`), and read `result`
    for the end. A connection that breaks is made anew from the exact byte where it broke; what the sandbox could not
    keep comes as an `OutputGap`. Interrupting an iteration or a wait never hurts the command, and loses no output.

    The handle stays attached until it is closed, or its client is. A handle that is dropped stays attached too, and
    its output is thrown away, so that its command runs on; `with` and `close` let go at once.

    Source: wire protocol, sections 3.5 to 3.14.
    """

    MAX_AUTO_RECONNECTS: ClassVar[int] = AsyncCommandHandle.MAX_AUTO_RECONNECTS
    """Connections that may be lost one after the other, without a byte of output between, before the handle gives
    up.
    """

    @property
    def command_id(self) -> str:
        """The id under which any process can attach to the command."""
        return self._async.command_id

    @property
    def pid(self) -> int | None:
        """The process id inside the sandbox; None until it is known."""
        return self._async.pid

    @property
    def last_stdout_offset(self) -> int:
        """The offset in bytes of the next byte of stdout that iteration will yield."""
        return self._async.last_stdout_offset

    @property
    def last_stderr_offset(self) -> int:
        """The offset in bytes of the next byte of stderr that iteration will yield."""
        return self._async.last_stderr_offset

    def next_batch(self) -> list[OutputChunk]:
        """Return all the output that is there, at least one chunk, waiting for it; empty when the command is over.

        Interrupting loses nothing.

        Raises:
            SandboxClientError: as iteration does.
        """
        with unframed:
            return self._bridge.call(self._async.next_batch)

    @property
    def result(self) -> ExecutionResult:
        """The `ExecutionResult`: all the output, as far as it was kept, and the exit code.

        Reading it waits for the end and takes the output that iteration has not taken yet; use one after the other.
        Many threads may read it. A command that was killed has a result, too: its exit code is 137 and `killed` is
        true.

        Raises:
            CommandTimeoutError: the command ran longer than its `timeout`.
            SandboxOperationError: it could not start, or is not known any more.
            SandboxConnectionError: it was lost; it may still run.
        """
        with unframed:
            return self._bridge.call(lambda: self._async.result)

    def kill(self) -> None:
        """Kill the command with everything that it started.

        Read `result` to see its end. Killing what has ended does nothing.

        If the connection is lost meanwhile, the kill is sent again on the next one.
        """
        with unframed:
            self._bridge.call(self._async.kill)

    def send_input(self, data: str) -> None:
        """Write text to the command's standard input or terminal.

        Each text is sent at most once: if the connection breaks meanwhile, or the call is interrupted, a part may be
        missing.

        Raises:
            SandboxOperationError: the input is closed, the command is over, or too much input waits already.
        """
        with unframed:
            self._bridge.call(self._async.send_input, data)

    def close_input(self) -> None:
        """Close the command's standard input, so that it reads the end of the file.

        With a terminal, or when done before: nothing.
        """
        with unframed:
            self._bridge.call(self._async.close_input)

    def resize(self, cols: int, rows: int) -> None:
        """Tell the command's terminal its size in characters.

        Raises:
            LocalProtocolError: the command has no terminal.
        """
        with unframed:
            self._bridge.call(self._async.resize, cols, rows)

    def reconnect(self) -> CommandHandle:
        """Return a new handle that goes on where this one's iteration stands."""
        with unframed:
            twin = self._bridge.call(self._async.reconnect)
            return CommandHandle(self._bridge, twin)

    def close(self) -> None:
        """Let go of the command, which runs on. Output that was not taken is dropped. Closing again does nothing."""
        with unframed:
            self._bridge.call(self._async.aclose)


class Registries(Twin[AsyncRegistries]):
    """Credentials for image registries, which snapshots of private images are made with.

    ::

        registry = client.registries.create(
            name="internal", url="registry.example.com", username="robot", password=password
        )
        client.create_snapshot("app", "registry.example.com/app:1", 2 * 1024**3, registry_id=registry.id)

    The service keeps what it is given here, and never tells it again.
    """

    def create(
        self,
        *,
        name: str,
        url: str,
        auth_type: Literal["DOCKER_CONFIG", "AWS_ROLE"] | None = None,
        aws_role_arn: str | None = None,
        username: str | None = None,
        password: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Registry:
        """Give the service credentials for a registry.

        Args:
            name: Unique among your registries.
            url: Where it is, such as `registry.example.com:5000`.
            auth_type: `DOCKER_CONFIG`, the default, for `username` and `password`. `AWS_ROLE`, for `aws_role_arn`, is
                not for every service.
            password: Or a token, as the registry has it.

        Raises:
            ValueError: Name or URL are empty.
            ResourceAlreadyExistsError: The name is taken.
            ValidationError: The service does not take an argument; `field` says which.
        """
        with unframed:
            return self._bridge.call(
                self._async.create,
                name=name,
                url=url,
                auth_type=auth_type,
                aws_role_arn=aws_role_arn,
                username=username,
                password=password,
                headers=headers,
            )

    def retrieve(self, name: str, *, headers: Mapping[str, str] | None = None) -> Registry:
        """Get a registry by its name.

        Raises:
            ResourceNotFoundError: There is no such registry.
        """
        with unframed:
            return self._bridge.call(self._async.retrieve, name, headers=headers)

    def update(
        self,
        path_name: str,
        *,
        auth_type: Literal["DOCKER_CONFIG", "AWS_ROLE"] | None = None,
        aws_role_arn: str | None = None,
        body_name: str | None = None,
        password: str | None = None,
        url: str | None = None,
        username: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Registry:
        """Change what is given of the registry called `path_name`; None leaves a thing as it is.

        Args:
            body_name: What it is called from now on.

        Raises:
            ResourceNotFoundError: There is no such registry.
            ResourceNameConflictError: The new name is taken.
            ValidationError: The service does not take an argument; `field` says which.
        """
        with unframed:
            return self._bridge.call(
                self._async.update,
                path_name,
                auth_type=auth_type,
                aws_role_arn=aws_role_arn,
                body_name=body_name,
                password=password,
                url=url,
                username=username,
                headers=headers,
            )

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        name_contains: str | None = None,
        offset: int | None = None,
        page_size: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RegistryPage:
        """List registries: one page of at most `page_size`.

        Args:
            cursor: The `next_cursor` of the page before.
            limit, offset: Older forms of `page_size` and `cursor`.
        """
        with unframed:
            return self._bridge.call(
                self._async.list,
                cursor=cursor,
                limit=limit,
                name_contains=name_contains,
                offset=offset,
                page_size=page_size,
                headers=headers,
            )

    def delete(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Have the service forget a registry and its credentials. Snapshots that came from it stay.

        Raises:
            ResourceNotFoundError: There is no such registry.
        """
        with unframed:
            self._bridge.call(self._async.delete, name, headers=headers)


class Sandbox(Managed[AsyncSandbox]):
    """A sandbox that commands run in.

    Get one with `SandboxClient.sandbox`, whose sandbox is deleted at the end of its `with`; or with
    `create_sandbox` or `get_sandbox`, whose sandboxes stay.

    Every call takes `headers`, which are sent with this call only and override those of the client. Every call is
    bounded in time: `timeout` is how long the sandbox may be silent, in seconds. Every call may raise
    `SandboxConnectionError`, `SandboxAuthenticationError` and `DataplaneNotConfiguredError`.
    """

    @property
    def name(self) -> str:
        return self._async.name

    @property
    def dataplane_url(self) -> str | None:
        """Where its commands and files are reached."""
        return self._async.dataplane_url

    @property
    def id(self) -> str | None:
        """UUID; stays when the sandbox is renamed."""
        return self._async.id

    @property
    def status(self) -> str:
        """`provisioning`, `ready`, `failed`, `stopped` or `deleting`, as of when this object last heard."""
        return self._async.status

    @property
    def status_message(self) -> str | None:
        return self._async.status_message

    @property
    def created_at(self) -> str | None:
        return self._async.created_at

    @property
    def updated_at(self) -> str | None:
        return self._async.updated_at

    @property
    def idle_ttl_seconds(self) -> int | None:
        """Stopped after so long without activity; 0 for never."""
        return self._async.idle_ttl_seconds

    @property
    def delete_after_stop_seconds(self) -> int | None:
        """Deleted so long after it stopped; 0 for never."""
        return self._async.delete_after_stop_seconds

    @property
    def stopped_at(self) -> str | None:
        return self._async.stopped_at

    @property
    def snapshot_id(self) -> str | None:
        return self._async.snapshot_id

    @property
    def vcpus(self) -> float | None:
        return self._async.vcpus

    @property
    def mem_bytes(self) -> int | None:
        return self._async.mem_bytes

    @property
    def fs_capacity_bytes(self) -> int | None:
        return self._async.fs_capacity_bytes

    @property
    def run_config(self) -> RunConfig | None:
        return self._async.run_config

    @property
    def access_delegation(self) -> dict[str, Any] | None:
        return self._async.access_delegation

    @property
    def preserve_memory_on_stop(self) -> bool | None:
        return self._async.preserve_memory_on_stop

    @property
    def labels(self) -> dict[str, str] | None:
        return self._async.labels

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], client: SandboxClient, auto_delete: bool = False) -> Sandbox:
        """Make an object of the service's JSON. With `auto_delete`, `with` deletes the sandbox."""
        return cls(client._bridge, AsyncSandbox.from_dict(data, client._async, auto_delete))

    def to_async(self, *, client: AsyncSandboxClient | None = None) -> AsyncSandbox:
        """The same sandbox for programs with an event loop.

        Args:
            client: The client that it is to belong to; None for a new one.
        """
        client = client or AsyncSandboxClient(**self._async._client._service.settings)
        return AsyncSandbox.from_dict(attrs.asdict(self._async._record), client)

    @overload
    def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        close_input: bool | None = None,
        shell: str = "/bin/bash",
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        headers: Mapping[str, str] | None = None,
        max_output_bytes: int | None = None,
        wait: Literal[True] = True,
    ) -> ExecutionResult: ...

    @overload
    def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        close_input: bool | None = None,
        shell: str = "/bin/bash",
        on_stdout: None = None,
        on_stderr: None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        headers: Mapping[str, str] | None = None,
        max_output_bytes: int | None = None,
        wait: Literal[False],
    ) -> CommandHandle: ...

    def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        close_input: bool | None = None,
        shell: str = "/bin/bash",
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        headers: Mapping[str, str] | None = None,
        max_output_bytes: int | None = None,
        wait: bool = True,
    ) -> ExecutionResult | CommandHandle:
        """Run a command, and wait for its end unless `wait` is false.

        Interrupting a waited run kills its command; interrupting the start of another one does, too.

        Args:
            command: A line for the shell.
            timeout: Seconds that it may run; 0 for no limit.
            env: Variables on top of the sandbox's.
            cwd: The folder that it runs in.
            run_config: User, folder and variables in one; excludes `env` and `cwd`.
            close_input: Whether its standard input is closed from the start. None: closed with `wait=True`, open with
                `wait=False`.
            shell: What interprets the line.
            on_stdout, on_stderr: Called with text as it comes, on the caller's thread; only with `wait=True`.
            idle_timeout: Seconds that it may run with nobody attached; -1 for ever.
            kill_on_disconnect: Kill it as soon as nobody is attached.
            ttl_seconds: How long its output is kept after its end; -1 for ever.
            pty: Give it a terminal. Both outputs come as stdout, and its input is never closed.
            max_output_bytes: What the result keeps of each stream, half from its beginning and half from its end. None:
                everything with `wait=True`, 4 MiB with `wait=False`.
            wait: False returns a handle as soon as the command runs.

        Raises:
            ValueError: The arguments make no sense, by themselves or together.
            CommandTimeoutError: It ran longer than `timeout`, and was killed.
            SandboxOperationError: It could not start.
            ResourceNotFoundError: The sandbox is gone.
        """
        with unframed:
            twin: Any = self._bridge.call_relaying(
                ["on_stdout", "on_stderr"],
                self._async.run,
                command,
                timeout=timeout,
                env=env,
                cwd=cwd,
                run_config=run_config,
                close_input=close_input,
                shell=shell,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                idle_timeout=idle_timeout,
                kill_on_disconnect=kill_on_disconnect,
                ttl_seconds=ttl_seconds,
                pty=pty,
                headers=headers,
                max_output_bytes=max_output_bytes,
                wait=wait,
            )
            return CommandHandle(self._bridge, twin) if isinstance(twin, AsyncCommandHandle) else twin

    def reconnect(
        self,
        command_id: str,
        *,
        stdout_offset: int = 0,
        stderr_offset: int = 0,
        stdin_closed: bool = False,
        pty: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> CommandHandle:
        """Attach to a command by its id, from any process.

        Nothing is sent until the handle is used; an unknown id shows then.

        Args:
            stdout_offset, stderr_offset: Where to begin, in bytes; what the sandbox does not keep any more is skipped,
                and an `OutputGap` says so.
            stdin_closed: Whether its input is known to be closed, so that `send_input` raises at once.
            pty: Whether it has a terminal.
        """
        with unframed:
            twin = self._bridge.call(
                self._async.reconnect,
                command_id,
                stdout_offset=stdout_offset,
                stderr_offset=stderr_offset,
                stdin_closed=stdin_closed,
                pty=pty,
                headers=headers,
            )
            return CommandHandle(self._bridge, twin)

    def write(
        self, path: str, content: str | bytes, *, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write a whole file, making its folders; text becomes UTF-8.

        Raises:
            SandboxOperationError: The sandbox refused it.
        """
        with unframed:
            self._bridge.call(self._async.write, path, content, timeout=timeout, headers=headers)

    def read(self, path: str, *, timeout: float = 60, headers: Mapping[str, str] | None = None) -> bytes:
        """Read a whole file into memory. A connection that breaks is made anew and goes on where it broke.

        Raises:
            ResourceNotFoundError: There is no such file.
            SandboxOperationError: It cannot be read, or changed meanwhile.
        """
        with unframed:
            return self._bridge.call(self._async.read, path, timeout=timeout, headers=headers)

    def upload(
        self, path: str, source: Source, *, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write a file of any size with little memory.

        Args:
            path: Where in the sandbox.
            source: The path of a local file, a binary file object, bytes, or an iterable of bytes. A
                local file and bytes are sent again where that may help; the others can be read only once.

        Raises:
            OSError: The local file cannot be read.
            SandboxOperationError: The sandbox refused it.
        """
        with unframed:
            self._bridge.call(self._async.upload, path, source, timeout=timeout, headers=headers)

    def download(
        self, path: str, target: Target, *, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> int:
        """Read a file of any size with little memory. After a broken connection it goes on where it broke.

        Args:
            path: Where in the sandbox.
            target: The path of a local file, which appears when it is complete; or a binary file object.

        Returns:
            The number of bytes.

        Raises:
            OSError: The local file cannot be written.
            ResourceNotFoundError: There is no such file.
            SandboxOperationError: It cannot be read, or changed meanwhile.
        """
        with unframed:
            return self._bridge.call(self._async.download, path, target, timeout=timeout, headers=headers)

    def read_range(
        self,
        path: str,
        *,
        start: int | None = None,
        end: int | None = None,
        suffix_bytes: int | None = None,
        if_range: str | None = None,
        if_none_match: str | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> FileChunk:
        """Read a part of a file.

        Args:
            start, end: Positions of the first and the last byte; without `end` to the end of the file.
            suffix_bytes: Instead: so many bytes from the end.
            if_range: An ETag; if the file has another one by now, the whole file comes.
            if_none_match: An ETag; if the file still has it, nothing comes and `unchanged` is true.

        Raises:
            ValueError: The range makes no sense.
            ResourceNotFoundError: There is no such file.
            SandboxOperationError: It is shorter than `start`.
        """
        with unframed:
            return self._bridge.call(
                self._async.read_range,
                path,
                start=start,
                end=end,
                suffix_bytes=suffix_bytes,
                if_range=if_range,
                if_none_match=if_none_match,
                timeout=timeout,
                headers=headers,
            )

    def stat(self, path: str, *, timeout: float = 60, headers: Mapping[str, str] | None = None) -> FileStat:
        """Tell a file's size, ETag and time without reading it.

        Raises:
            ResourceNotFoundError: There is no such file.
        """
        with unframed:
            return self._bridge.call(self._async.stat, path, timeout=timeout, headers=headers)

    def glob(
        self,
        pattern: str,
        path: str,
        *,
        limit: int | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> GlobResult:
        """Find files and folders below `path`. `**` is any number of folders; `*`, `?` and `[...]` are within one.

        Raises:
            ResourceNotFoundError: There is no such folder.
        """
        with unframed:
            return self._bridge.call(self._async.glob, pattern, path, limit=limit, timeout=timeout, headers=headers)

    def ls(
        self, path: str, *, limit: int | None = None, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> GlobResult:
        """List a folder. The errors are those of `glob`."""
        with unframed:
            return self._bridge.call(self._async.ls, path, limit=limit, timeout=timeout, headers=headers)

    def grep(
        self,
        pattern: str,
        path: str,
        *,
        glob: str | None = None,
        limit: int | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> GrepResult:
        """Find lines that contain `pattern` as it is (no regular expression) in the files below `path`.

        Args:
            glob: Only in files whose name, or path if it has a `/` or `**`, fits.

        Raises:
            ResourceNotFoundError: There is no such folder or file.
        """
        with unframed:
            return self._bridge.call(
                self._async.grep, pattern, path, glob=glob, limit=limit, timeout=timeout, headers=headers
            )

    def tunnel(
        self,
        remote_port: int | None = None,
        *,
        local_port: int | None = 0,
        max_reconnects: int = 3,
        remote_path: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Tunnel:
        """Listen on a port of this machine that leads to a port in the sandbox, until the tunnel is closed.

        `with sandbox.tunnel(5432) as tunnel` closes it at the end. Without `with`, it is closed with it.

        Args:
            remote_port: The port in the sandbox, at its `127.0.0.1` or `::1`.
            local_port: The port at `127.0.0.1` of this machine. 0 takes the same number as `remote_port`, and lets the
                system choose where there is none; None always lets the system choose.
            max_reconnects: How often in a row the tunnel tries to connect anew when it is needed and was lost.
            remote_path: The path of a unix socket in the sandbox, instead of a port. Not every server offers it.

        Raises:
            ValueError: A port or the path is none, at once.
            TunnelLocalPortError: Something else listens on the local port, or it may not be used.
            ResourceNotFoundError: The sandbox is gone.
            SandboxConnectionError: The first connection could not be made; it is tried once.

        Whether anything listens on `remote_port` is not asked here; see `Tunnel.check`.
        """
        with unframed:
            twin = self._bridge.call_owning(
                self._async.tunnel,
                remote_port,
                local_port=local_port,
                max_reconnects=max_reconnects,
                remote_path=remote_path,
                headers=headers,
            )
            return Tunnel(self._bridge, twin)

    def service(
        self,
        port: int,
        *,
        expires_in_seconds: int = 600,
        embed_origins: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ServiceURL:
        """Get the way to an HTTP service on a port of the sandbox. Nothing needs to listen there yet.

        ::

            service = sandbox.service(8000)
            response = service.get("/items")

        The arguments and errors are those of `SandboxClient.service`.
        """
        with unframed:
            twin = self._bridge.call(
                self._async.service,
                port,
                expires_in_seconds=expires_in_seconds,
                embed_origins=embed_origins,
                headers=headers,
            )
            return ServiceURL(self._bridge, twin)

    def generate_download_url(
        self,
        path: str,
        *,
        expires_in_seconds: int | None = None,
        content_type: str | None = None,
        content_disposition: DownloadContentDisposition | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> DownloadURL:
        """Make a link to a file. The arguments and errors are those of `SandboxClient.generate_download_url`."""
        with unframed:
            return self._bridge.call(
                self._async.generate_download_url,
                path,
                expires_in_seconds=expires_in_seconds,
                content_type=content_type,
                content_disposition=content_disposition,
                headers=headers,
            )

    def start(self, *, timeout: float = 120, headers: Mapping[str, str] | None = None) -> None:
        """Start a stopped or failed sandbox and wait until it is ready.

        Raises:
            ResourceCreationError: It failed to start.
            ResourceTimeoutError: It was not ready within `timeout` seconds.
        """
        with unframed:
            self._bridge.call(self._async.start, timeout=timeout, headers=headers)

    def stop(self, *, headers: Mapping[str, str] | None = None) -> None:
        """Stop the sandbox: its processes end, its files stay."""
        with unframed:
            self._bridge.call(self._async.stop, headers=headers)

    def capture_snapshot(
        self,
        name: str,
        *,
        tag: str | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of the sandbox's files and wait until it is ready; see `SandboxClient.capture_snapshot`.

        A running sandbox stands still for a moment, and runs on.
        """
        with unframed:
            answer: Snapshot = self._bridge.call(
                self._async.capture_snapshot, name, tag=tag, run_config=run_config, timeout=timeout, headers=headers
            )
            return answer

    def delete(self, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete the sandbox and everything in it.

        Raises:
            ResourceNotFoundError: It is gone already.
        """
        with unframed:
            self._bridge.call(self._async.delete, headers=headers)


class ServiceURL(Twin[AsyncServiceURL]):
    """The way to an HTTP service in a sandbox.

    Get one with `Sandbox.service`. It renews its token before that expires, or when the service refuses it.

    ::

        service = sandbox.service(8000)
        response = service.post("/items", json={"name": "a"})

    The methods for requests take the keywords of `httpx.request`, such as `json`, `params`, `headers` and
    `timeout` (by default 30 s of silence), and give the `httpx.Response` whatever its status. Redirects are not
    followed. What could not be sent is sent again; so is what was cut off or answered 502, 503 or 504, if its method is
    idempotent and its body can be sent twice. Every request may raise `SandboxConnectionError`, `RequestTimeoutError`
    and, where a token is needed, what `Sandbox.service` raises.
    """

    @property
    def embed_origins(self) -> list[str]:
        """The origins whose pages may show the service in a frame."""
        return self._async.embed_origins

    @property
    def token(self) -> str:
        """A valid token, for the header `X-Langsmith-Sandbox-Service-Token`."""
        with unframed:
            return self._bridge.call(self._async.get_token)

    @property
    def service_url(self) -> str:
        """Where programs reach the service, with the token in a header."""
        with unframed:
            return self._bridge.call(self._async.get_service_url)

    @property
    def browser_url(self) -> str:
        """A URL that lets a browser in. Whoever has it can use the service until it expires."""
        with unframed:
            return self._bridge.call(self._async.get_browser_url)

    @property
    def expires_at(self) -> str:
        """When the token expires, RFC 3339; renewed if that is about to be."""
        with unframed:
            return self._bridge.call(self._async.get_expires_at)

    @property
    def embed_url(self) -> str:
        """A URL for a frame in a page of one of the `embed_origins`; empty without such."""
        with unframed:
            return self._bridge.call(self._async.get_embed_url)

    def request(self, method: str, path: str = "/", **options: Any) -> httpx.Response:
        """Send a request to a path of the service. An answer of more than 256 MiB is an error: use `stream`.

        Raises:
            ValueError: The path leads out of the service, or redirects are to be followed.
        """
        with unframed:
            return self._bridge.call(lambda: self._async.request(method, path, **options))

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a GET; see `request`."""
        with unframed:
            return self._bridge.call(lambda: self._async.get(path, **options))

    def post(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a POST; see `request`."""
        with unframed:
            return self._bridge.call(lambda: self._async.post(path, **options))

    def put(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a PUT; see `request`."""
        with unframed:
            return self._bridge.call(lambda: self._async.put(path, **options))

    def patch(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a PATCH; see `request`."""
        with unframed:
            return self._bridge.call(lambda: self._async.patch(path, **options))

    def delete(self, path: str = "/", **options: Any) -> httpx.Response:
        """Send a DELETE; see `request`."""
        with unframed:
            return self._bridge.call(lambda: self._async.delete(path, **options))

    def stream(self, method: str, path: str = "/", **options: Any) -> ServiceResponse:
        """Send a request, and receive the answer's body as it comes.

        `with service.stream("GET", "/events") as response` closes it at the end; otherwise close it
        with `close`. The arguments and errors are those of `request`.
        """
        with unframed:
            twin = self._bridge.call_owning(lambda: self._async.stream(method, path, **options))
            return ServiceResponse(self._bridge, twin)

    def websocket(self, path: str = "/", *, headers: Mapping[str, str] | None = None) -> ServiceWebSocket:
        """Open a websocket to a path of the service.

        `with service.websocket("/ws") as websocket` closes it at the end; otherwise close it with `close`. It is
        not opened again when it is lost.

        Raises:
            ValueError: The path leads out of the service, or a header cannot be sent.
            SandboxAuthenticationError: The service refused the token.
            SandboxConnectionError: There is no websocket there.
        """
        with unframed:
            twin = self._bridge.call_owning(self._async.websocket, path, headers=headers)
            return ServiceWebSocket(self._bridge, twin)


class ServiceResponse(Managed[AsyncServiceResponse]):
    """An answer of a service whose body is received as it comes.

    ::

        with service.stream("GET", "/events") as response:
            for piece in response:
                ...
    """

    @property
    def status_code(self) -> int:
        return self._async.status_code

    @property
    def headers(self) -> httpx.Headers:
        return self._async.headers

    def receive(self) -> bytes:
        """Receive the next piece, of any size; empty at the end of the body.

        Raises:
            SandboxConnectionError: The body was cut off.
            LocalProtocolError: The response is closed.
        """
        with unframed:
            return self._bridge.call(self._async.receive)

    def read(self) -> bytes:
        """Receive the rest of the body, of at most 256 MiB. The errors are those of `receive`."""
        with unframed:
            return self._bridge.call(self._async.read)

    def close(self) -> None:
        """End the exchange. Closing again does nothing. It is shielded from interrupts, and quick."""
        with unframed:
            self._bridge.call(self._async.aclose)


class ServiceWebSocket(Managed[AsyncServiceWebSocket]):
    """A websocket to a service. One task may receive while others send.

    ::

        with service.websocket("/ws") as websocket:
            websocket.send("hello")
            for message in websocket:
                ...

    Pings are answered while somebody receives.
    """

    def send(self, message: str | bytes) -> None:
        """Send a text, or bytes as a binary message. A send that is interrupted ends the connection.

        Raises:
            SandboxConnectionError: The connection is over.
        """
        with unframed:
            self._bridge.call(self._async.send, message)

    def receive(self) -> bytes | None:
        """Receive the next message, of at most 16 MiB. A text comes as UTF-8. None: the service has closed it well.

        Interrupting loses nothing.

        Raises:
            SandboxConnectionError: The connection ended in another way.
            RemoteProtocolError: The service broke the protocol.
            LocalProtocolError: Another task receives.
        """
        with unframed:
            return self._bridge.call(self._async.receive)

    def close(self) -> None:
        """Close the connection; messages that were not received are lost. Shielded from interrupts, 1 s at most."""
        with unframed:
            self._bridge.call(self._async.aclose)


class Tunnel(Managed[AsyncTunnel]):
    """A local port that leads into a sandbox.

    Get one with `Sandbox.tunnel`. Every connection to `127.0.0.1` at `local_port` becomes one to the port, or the
    unix socket, in the sandbox. Each side may end while the other goes on; a connection that the sandbox refuses or
    breaks off is reset, and `statistics().last_error` says why.

    A local program is connected at once, before the sandbox was asked: it sees a refusal as a reset, not as a
    connection that is refused. `check` asks beforehand.

    When the tunnel's own connection is lost, the local ones are reset, but the port stays: the next local connection
    has the tunnel connect anew. It tries `max_reconnects` times for each loss; with 0, the tunnel stays lost.
    """

    @property
    def local_port(self) -> int:
        """The port on this machine, at `127.0.0.1`."""
        return self._async.local_port

    @property
    def remote_port(self) -> int | None:
        """The port in the sandbox; None for a unix socket."""
        return self._async.remote_port

    @property
    def remote_path(self) -> str | None:
        """The unix socket in the sandbox; None for a port."""
        return self._async.remote_path

    def statistics(self) -> TunnelStatistics:
        """Count what has passed so far."""
        with unframed:
            return self._bridge.call(self._async.statistics)

    def check(self) -> None:
        """See whether what the tunnel leads to accepts connections, by making one and dropping it.

        Raises:
            TunnelConnectionRefusedError: Nothing listens there.
            TunnelPortNotAllowedError: It may not be reached.
            TunnelUnsupportedVersionError: The server knows no tunnels to unix sockets.
            SandboxConnectionError: The tunnel has lost its connection, and could not make another one.
            LocalProtocolError: The tunnel is closed, or was closed meanwhile.
        """
        with unframed:
            self._bridge.call(self._async.check)

    def close(self) -> None:
        """Close the local port, and reset the connections that are open. Closing again does nothing.

        It is shielded from interrupts, and quick.
        """
        with unframed:
            self._bridge.call(self._async.aclose)
