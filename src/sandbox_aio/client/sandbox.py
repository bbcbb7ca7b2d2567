"""One sandbox: commands and files in it, and its life."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import attrs

from ..errors import DataplaneNotConfiguredError, SandboxConnectionError
from ..models import SandboxRecord
from ..protocol.file_requests import DataPlane, multipart_frame
from ..protocol.frames import Reconnect
from ..protocol.run_options import execute_frame
from .command import AsyncCommandHandle, OutputCallback, WebSocketMissing, attach_command, run_command, start_command
from .fallback import run_over_http
from .ids import new_boundary, new_command_id
from .kept_output import HANDLE_OUTPUT_BYTES
from .sources import upload_source
from .targets import open_target
from .tunnel import PendingTunnel, TunnelOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from ..models import (
        DownloadContentDisposition,
        DownloadURL,
        ExecutionResult,
        FileChunk,
        FileStat,
        GlobResult,
        GrepResult,
        RunConfig,
        Snapshot,
    )
    from ..sync import Sandbox, SandboxClient
    from .client import AsyncSandboxClient
    from .service_url import AsyncServiceURL
    from .sources import Source
    from .targets import Target

__all__ = ["AsyncSandbox"]

_SMALL_FILE_BYTES = 256 * 1024


class AsyncSandbox:
    """A sandbox that commands run in.

    Get one with `AsyncSandboxClient.sandbox`, whose sandbox is deleted at the end of its `async with`; or with
    `create_sandbox` or `get_sandbox`, whose sandboxes stay.

    Every call takes `headers`, which are sent with this call only and override those of the client. Every call is
    bounded in time: `timeout` is how long the sandbox may be silent, in seconds. Every call may raise
    `SandboxConnectionError`, `SandboxAuthenticationError` and `DataplaneNotConfiguredError`.
    """

    name: str
    dataplane_url: str | None
    """Where its commands and files are reached."""
    id: str | None
    """UUID; stays when the sandbox is renamed."""
    status: str
    """`provisioning`, `ready`, `failed`, `stopped` or `deleting`, as of when this object last heard."""
    status_message: str | None
    created_at: str | None
    updated_at: str | None
    idle_ttl_seconds: int | None
    """Stopped after so long without activity; 0 for never."""
    delete_after_stop_seconds: int | None
    """Deleted so long after it stopped; 0 for never."""
    stopped_at: str | None
    snapshot_id: str | None
    vcpus: float | None
    mem_bytes: int | None
    fs_capacity_bytes: int | None
    run_config: RunConfig | None
    access_delegation: dict[str, Any] | None
    preserve_memory_on_stop: bool | None
    labels: dict[str, str] | None

    def __init__(self, record: SandboxRecord, client: AsyncSandboxClient, *, auto_delete: bool = False) -> None:
        """Sandboxes come from a client; this is not for users."""
        self._client = client
        self._service = client._service
        self._auto_delete = auto_delete
        self._show(record)

    def _show(self, record: SandboxRecord) -> None:
        self._record = record
        vars(self).update(attrs.asdict(record, recurse=False))

    def __repr__(self) -> str:
        return f"AsyncSandbox(name={self.name!r}, id={self.id!r}, status={self.status!r})"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], client: AsyncSandboxClient, auto_delete: bool = False) -> AsyncSandbox:
        """Make an object of the service's JSON. With `auto_delete`, `async with` deletes the sandbox."""
        return cls(SandboxRecord.from_dict(data), client, auto_delete=auto_delete)

    def to_sync(self, *, client: SandboxClient | None = None) -> Sandbox:
        """The same sandbox for programs without an event loop.

        Args:
            client: The client that it is to belong to; None for a new one.
        """
        sync = import_module("sandbox_aio.sync")
        sandbox: Sandbox = sync.Sandbox.from_dict(attrs.asdict(self._record), client or self._client.to_sync())
        return sandbox

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Delete the sandbox if `client.sandbox()` made it: shielded, within 5 s, raising nothing."""
        if self._auto_delete:
            await self._service.delete_quietly(self.name)

    # --- commands ---------------------------------------------------------------------------------------------------

    @overload
    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        close_input: bool | None = None,
        shell: str = "/bin/bash",
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        headers: Mapping[str, str] | None = None,
        max_output_bytes: int | None = None,
        wait: Literal[True] = True,
    ) -> ExecutionResult: ...

    @overload
    async def run(
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
    ) -> AsyncCommandHandle: ...

    async def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        close_input: bool | None = None,
        shell: str = "/bin/bash",
        on_stdout: OutputCallback | None = None,
        on_stderr: OutputCallback | None = None,
        idle_timeout: float = 300,
        kill_on_disconnect: bool = False,
        ttl_seconds: float = 600,
        pty: bool = False,
        headers: Mapping[str, str] | None = None,
        max_output_bytes: int | None = None,
        wait: bool = True,
    ) -> ExecutionResult | AsyncCommandHandle:
        """Run a command, and wait for its end unless `wait` is false.

        Cancelling a waited run kills its command; cancelling the start of another one does, too.

        Args:
            command: A line for the shell.
            timeout: Seconds that it may run; 0 for no limit.
            env: Variables on top of the sandbox's.
            cwd: The folder that it runs in.
            run_config: User, folder and variables in one; excludes `env` and `cwd`.
            close_input: Whether its standard input is closed from the start. None: closed with `wait=True`, open with
                `wait=False`.
            shell: What interprets the line.
            on_stdout, on_stderr: Called with text as it comes; only with `wait=True`.
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
        frame = execute_frame(
            command,
            command_id=new_command_id(),
            timeout=timeout,
            env=env,
            cwd=cwd,
            run_config=run_config,
            close_input=close_input,
            shell=shell,
            idle_timeout=idle_timeout,
            kill_on_disconnect=kill_on_disconnect,
            ttl_seconds=ttl_seconds,
            pty=pty,
            wait=wait,
            callbacks=on_stdout is not None or on_stderr is not None,
        )
        plane = self._data_plane()
        site = self._service.command_site(plane, headers)
        try:
            if wait:
                return await run_command(
                    site, frame, on_stdout=on_stdout, on_stderr=on_stderr, max_output_bytes=max_output_bytes
                )
            keep = HANDLE_OUTPUT_BYTES if max_output_bytes is None else max_output_bytes
            return await start_command(site, frame, max_output_bytes=keep)
        except WebSocketMissing as missing:
            await self._client.get_sandbox_status(self.name, headers=headers)
            if not wait:
                raise SandboxConnectionError("this server has no websocket; use wait=True") from missing.error
            return await run_over_http(
                self._service.http, plane, frame, on_stdout=on_stdout, on_stderr=on_stderr, headers=headers
            )

    async def reconnect(
        self,
        command_id: str,
        *,
        stdout_offset: int = 0,
        stderr_offset: int = 0,
        stdin_closed: bool = False,
        pty: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncCommandHandle:
        """Attach to a command by its id, from any process.

        Nothing is sent until the handle is used; an unknown id shows then.

        Args:
            stdout_offset, stderr_offset: Where to begin, in bytes; what the sandbox does not keep any more is skipped,
                and an `OutputGap` says so.
            stdin_closed: Whether its input is known to be closed, so that `send_input` raises at once.
            pty: Whether it has a terminal.
        """
        frame = Reconnect(command_id=command_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset)
        site = self._service.command_site(self._data_plane(), headers)
        return attach_command(site, frame, terminal=pty, input_closed=stdin_closed)

    # --- files ------------------------------------------------------------------------------------------------------

    async def write(
        self, path: str, content: str | bytes, *, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write a whole file, making its folders; text becomes UTF-8.

        Raises:
            SandboxOperationError: The sandbox refused it.
        """
        data = content.encode() if isinstance(content, str) else content
        if len(data) > _SMALL_FILE_BYTES:
            return await self.upload(path, data, timeout=timeout, headers=headers)
        call = self._data_plane().upload(path, bytes(data), boundary=new_boundary(), timeout=timeout)
        await self._service.http.call(call, headers)

    async def read(self, path: str, *, timeout: float = 60, headers: Mapping[str, str] | None = None) -> bytes:
        """Read a whole file into memory. A connection that breaks is made anew and goes on where it broke.

        Raises:
            ResourceNotFoundError: There is no such file.
            SandboxOperationError: It cannot be read, or changed meanwhile.
        """
        pieces: list[bytes] = []

        async def keep(piece: bytes) -> None:
            pieces.append(piece)

        await self._service.download(self._data_plane(), path, keep, timeout, headers)
        return b"".join(pieces)

    async def upload(
        self, path: str, source: Source, *, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write a file of any size with little memory.

        Args:
            path: Where in the sandbox.
            source: The path of a local file, a binary file object, bytes, or an iterable of bytes, async or not. A
                local file and bytes are sent again where that may help; the others can be read only once.

        Raises:
            OSError: The local file cannot be read.
            SandboxOperationError: The sandbox refused it.
        """
        boundary = new_boundary()
        call = self._data_plane().upload_stream(path, boundary=boundary, timeout=timeout)
        await self._service.http.upload(call, await upload_source(source), multipart_frame(boundary), headers)

    async def download(
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
        plane = self._data_plane()
        async with open_target(target) as write:
            return await self._service.download(plane, path, write, timeout, headers)

    async def read_range(
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
        call = self._data_plane().download_range(
            path,
            start=start,
            end=end,
            suffix_bytes=suffix_bytes,
            if_range=if_range,
            if_none_match=if_none_match,
            timeout=timeout,
        )
        return await self._service.http.call(call, headers)

    async def stat(self, path: str, *, timeout: float = 60, headers: Mapping[str, str] | None = None) -> FileStat:
        """Tell a file's size, ETag and time without reading it.

        Raises:
            ResourceNotFoundError: There is no such file.
        """
        return await self._service.http.call(self._data_plane().stat(path, timeout=timeout), headers)

    async def glob(
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
        call = self._data_plane().glob(pattern, path, limit=limit, timeout=timeout)
        return await self._service.http.call(call, headers)

    async def ls(
        self, path: str, *, limit: int | None = None, timeout: float = 60, headers: Mapping[str, str] | None = None
    ) -> GlobResult:
        """List a folder. The errors are those of `glob`."""
        return await self.glob("*", path, limit=limit, timeout=timeout, headers=headers)

    async def grep(
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
        call = self._data_plane().grep(pattern, path, glob=glob, limit=limit, timeout=timeout)
        return await self._service.http.call(call, headers)

    # --- its ports --------------------------------------------------------------------------------------------------

    def tunnel(
        self,
        remote_port: int | None = None,
        *,
        local_port: int | None = 0,
        max_reconnects: int = 3,
        remote_path: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PendingTunnel:
        """Listen on a port of this machine that leads to a port in the sandbox, until the tunnel is closed.

        `async with sandbox.tunnel(5432) as tunnel` closes it at the end. A tunnel that was awaited belongs to the
        client, and is closed with it.

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

        Whether anything listens on `remote_port` is not asked here; see `AsyncTunnel.check`.
        """
        options = TunnelOptions(
            remote_port=remote_port, remote_path=remote_path, local_port=local_port, max_reconnects=max_reconnects
        )
        return PendingTunnel(lambda: self._service.tunnel_site(self._data_plane(), headers), options)

    async def service(
        self,
        port: int,
        *,
        expires_in_seconds: int = 600,
        embed_origins: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncServiceURL:
        """Get the way to an HTTP service on a port of the sandbox. Nothing needs to listen there yet.

        ::

            service = await sandbox.service(8000)
            response = await service.get("/items")

        The arguments and errors are those of `AsyncSandboxClient.service`.
        """
        return await self._client.service(
            self.name, port, expires_in_seconds=expires_in_seconds, embed_origins=embed_origins, headers=headers
        )

    async def generate_download_url(
        self,
        path: str,
        *,
        expires_in_seconds: int | None = None,
        content_type: str | None = None,
        content_disposition: DownloadContentDisposition | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> DownloadURL:
        """Make a link to a file. The arguments and errors are those of `AsyncSandboxClient.generate_download_url`."""
        return await self._client.generate_download_url(
            self.name,
            path,
            expires_in_seconds=expires_in_seconds,
            content_type=content_type,
            content_disposition=content_disposition,
            headers=headers,
        )

    # --- its life ---------------------------------------------------------------------------------------------------

    async def start(self, *, timeout: float = 120, headers: Mapping[str, str] | None = None) -> None:
        """Start a stopped or failed sandbox and wait until it is ready.

        Raises:
            ResourceCreationError: It failed to start.
            ResourceTimeoutError: It was not ready within `timeout` seconds.
        """
        sandbox = await self._client.start_sandbox(self.name, timeout=timeout, headers=headers)
        self._show(sandbox._record)

    async def stop(self, *, headers: Mapping[str, str] | None = None) -> None:
        """Stop the sandbox: its processes end, its files stay."""
        await self._client.stop_sandbox(self.name, headers=headers)
        self._show(attrs.evolve(self._record, status="stopped"))

    async def capture_snapshot(
        self,
        name: str,
        *,
        tag: str | None = None,
        run_config: RunConfig | Mapping[str, Any] | None = None,
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Snapshot:
        """Make a snapshot of the sandbox's files and wait until it is ready; see `AsyncSandboxClient.capture_snapshot`.

        A running sandbox stands still for a moment, and runs on.
        """
        return await self._client.capture_snapshot(
            self.name, name, tag=tag, run_config=run_config, timeout=timeout, headers=headers
        )

    async def delete(self, *, headers: Mapping[str, str] | None = None) -> None:
        """Delete the sandbox and everything in it.

        Raises:
            ResourceNotFoundError: It is gone already.
        """
        await self._client.delete_sandbox(self.name, headers=headers)

    def _data_plane(self) -> DataPlane:
        if not self.dataplane_url:
            raise DataplaneNotConfiguredError(
                f"the sandbox {self.name!r} has no dataplane_url; wait until it is ready and get it anew"
            )
        return DataPlane(url=self.dataplane_url.rstrip("/"), sandbox=self.name)
