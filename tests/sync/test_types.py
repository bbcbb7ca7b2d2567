"""What a type checker makes of the sync clients. mypy reads this file with the rest; nothing here needs a server."""

from __future__ import annotations

from typing import assert_type

from sandbox_aio import (
    AsyncSandbox,
    AsyncSandboxClient,
    CommandHandle,
    ExecutionResult,
    OutputChunk,
    Sandbox,
    SandboxClient,
)


def types_of_a_client(client: SandboxClient) -> None:
    with client as same:
        assert_type(same, SandboxClient)
    with client.sandbox() as sandbox:
        assert_type(sandbox, Sandbox)
    assert_type(client.create_sandbox(), Sandbox)
    assert_type(client.list_sandboxes(), list[Sandbox])
    assert_type(client.to_async(), AsyncSandboxClient)


def types_of_a_sandbox(sandbox: Sandbox) -> None:
    assert_type(sandbox.name, str)
    assert_type(sandbox.run("true"), ExecutionResult)
    assert_type(sandbox.run("true", on_stdout=print), ExecutionResult)
    assert_type(sandbox.run("true", wait=False), CommandHandle)
    assert_type(sandbox.reconnect("id"), CommandHandle)
    assert_type(sandbox.read("/file"), bytes)
    assert_type(sandbox.to_async(), AsyncSandbox)


def types_of_a_handle(handle: CommandHandle) -> None:
    for chunk in handle:
        assert_type(chunk, OutputChunk)
    assert_type(handle.result, ExecutionResult)
    assert_type(handle.next_batch(), list[OutputChunk])
    with handle as same:
        assert_type(same, CommandHandle)


def test_a_callback_may_not_be_a_coroutine_function_at_run_time_either() -> None:
    """The type cannot refuse it: a function that returns a coroutine returns an object."""
    assert Sandbox.run.__annotations__["on_stdout"] == "Callable[[str], object] | None"
