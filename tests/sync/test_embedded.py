"""What can hang, with the real client on the embedded server: Ctrl-C, forks, exits."""

from __future__ import annotations

from tests.sync.programs import run_program

LOCAL = """
    import sandbox_aio
    client = sandbox_aio.SandboxClient(api_endpoint="local")
"""


def test_r2_ctrl_c_kills_the_command_and_leaves_client_and_server_usable() -> None:
    outcome = run_program(
        LOCAL
        + """
    os.setpgid(0, 0)  # a terminal sends Ctrl-C to the whole group
    with client, client.sandbox() as sandbox:
        started = threading.Event()
        when(started.is_set, os.killpg, os.getpgid(0), signal.SIGINT)
        try:
            sandbox.run("echo started; exec sleep 4321", on_stdout=lambda _: started.set())
        except KeyboardInterrupt:
            say("interrupted")
        say(sandbox.run("pgrep -f 'sleep 432[1]' || echo gone").stdout)
        try:
            sandbox.run("yes", on_stdout=lambda _: 1 / 0)
        except ZeroDivisionError:
            say(sandbox.run("pgrep -x yes || echo gone").stdout)
    end()
    """,
        timeout=50,
    )
    assert outcome.said == ["interrupted", "gone", "", "gone", ""], outcome.errors
    assert (outcome.exit_code, outcome.errors) == (0, "")
    assert outcome.exit_seconds < 3


def test_r3_a_child_is_refused_and_the_parent_goes_on() -> None:
    outcome = run_program(
        LOCAL
        + """
    with client, client.sandbox() as sandbox:
        handle = sandbox.run("cat", wait=False)
        if not (pid := os.fork()):
            for call in (lambda: sandbox.run("true"), handle.kill, lambda: next(handle), client.list_sandboxes):
                try:
                    call()
                except ForkedClientError:
                    say("refused")
            sys.exit(0)
        os.waitpid(pid, 0)
        handle.send_input("parent")
        handle.close_input()
        say(handle.result.stdout)
    """,
        timeout=50,
    )
    assert outcome.said == ["refused"] * 4 + ["parent"], outcome.errors
    assert outcome.exit_code == 0


def test_r4_a_client_that_nobody_closed_does_not_hold_up_the_exit() -> None:
    outcome = run_program(
        LOCAL
        + """
    sandbox = client.sandbox()
    sandbox.upload("/tmp/file", "tests/sources.py")  # which a worker thread reads
    handle = sandbox.run("cat", wait=False)
    atexit.register(end)
    """,
        timeout=50,
    )
    assert outcome.exit_code == 0, outcome.errors
    assert outcome.exit_seconds < 3  # 0.6 s when the machine is idle: 0.5 s are given to the server's end
    assert "ResourceWarning: SandboxClient was never closed" in outcome.errors
    assert "Error" not in outcome.errors


def test_one_loop_serves_both_halves() -> None:
    outcome = run_program(
        LOCAL
        + """
    import asyncio
    async def use(sandbox):
        async with sandbox._client:
            say((await sandbox.run("echo async")).stdout)
    with client, client.sandbox() as sandbox:
        remote = sandbox_aio.SandboxClient(api_endpoint=client.api_endpoint, api_key=client.api_key)
        with remote:
            data = {"name": sandbox.name, "dataplane_url": sandbox.dataplane_url}
            again = sandbox_aio.Sandbox.from_dict(data, remote)
            say(again.run("echo sync").stdout)
        asyncio.run(use(sandbox.to_async()))
    """,
        timeout=50,
    )
    assert outcome.said == ["sync", "", "async", ""], outcome.errors
    assert (outcome.exit_code, outcome.errors) == (0, "")
