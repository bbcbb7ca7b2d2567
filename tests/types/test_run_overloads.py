"""What type checkers make of the public calls. mypy checks this file; running it checks that the names are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import sandbox_aio
from sandbox_aio import (
    AsyncCommandHandle,
    AsyncSandbox,
    AsyncSandboxClient,
    CommandHandle,
    ExecutionResult,
    FileChunk,
    FileStat,
    GlobResult,
    GrepResult,
    OutputChunk,
    ResourceStatus,
    Sandbox,
    SandboxClient,
    Snapshot,
)

if TYPE_CHECKING:

    async def asynchronous(client: AsyncSandboxClient, wait: bool) -> None:
        async with client.sandbox() as entered:
            assert_type(entered, AsyncSandbox)
        async with await client.sandbox() as awaited:
            assert_type(awaited, AsyncSandbox)
        sandbox = await client.create_sandbox()
        assert_type(sandbox, AsyncSandbox)
        assert_type(await client.list_sandboxes(), list[AsyncSandbox])
        assert_type(await client.get_sandbox_status("a"), ResourceStatus)
        assert_type(await client.get_snapshot("a"), Snapshot)

        assert_type(await sandbox.run("a"), ExecutionResult)
        assert_type(await sandbox.run("a", wait=True), ExecutionResult)
        assert_type(await sandbox.run("a", on_stdout=print), ExecutionResult)
        assert_type(await sandbox.run("a", on_stdout=coroutine), ExecutionResult)
        assert_type(await sandbox.run("a", wait=False), AsyncCommandHandle)
        await sandbox.run("a", wait=False, on_stdout=print)  # type: ignore[call-overload]
        await sandbox.run("a", 60)  # type: ignore[call-overload]

        handle = await sandbox.reconnect("id")
        assert_type(handle, AsyncCommandHandle)
        async for chunk in handle:
            assert_type(chunk, OutputChunk)
        assert_type(await handle.result, ExecutionResult)

        assert_type(await sandbox.read("/a"), bytes)
        assert_type(await sandbox.stat("/a"), FileStat)
        assert_type(await sandbox.read_range("/a", start=0), FileChunk)
        assert_type(await sandbox.glob("*", "/a"), GlobResult)
        assert_type(await sandbox.grep("a", "/a"), GrepResult)
        assert_type(await sandbox.download("/a", "a"), int)
        assert_type(client.to_sync(), SandboxClient)
        assert_type(sandbox.to_sync(), Sandbox)

    async def coroutine(text: str) -> None: ...

    def synchronous(client: SandboxClient) -> None:
        with client.sandbox() as entered:
            assert_type(entered, Sandbox)
        sandbox = client.create_sandbox()
        assert_type(sandbox, Sandbox)
        assert_type(client.list_sandboxes(), list[Sandbox])

        assert_type(sandbox.run("a"), ExecutionResult)
        assert_type(sandbox.run("a", on_stdout=print), ExecutionResult)
        assert_type(sandbox.run("a", wait=False), CommandHandle)
        sandbox.run("a", wait=False, on_stdout=print)  # type: ignore[call-overload]

        handle = sandbox.reconnect("id")
        assert_type(handle, CommandHandle)
        for chunk in handle:
            assert_type(chunk, OutputChunk)
        assert_type(handle.result, ExecutionResult)
        assert_type(sandbox.read("/a"), bytes)
        assert_type(client.to_async(), AsyncSandboxClient)
        assert_type(sandbox.to_async(), AsyncSandbox)


def test_every_name_above_exists() -> None:
    names = {"AsyncSandboxClient", "SandboxClient", "ExecutionResult"}
    assert names <= set(sandbox_aio.__all__)
