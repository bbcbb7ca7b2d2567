"""R3: use after a fork raises at once. R4: a client that nobody closed does not hold up the exit, and warns."""

from __future__ import annotations

import pytest

from tests.sync.programs import run_program

CHILD = """
    def in_child(function):
        pid = os.fork()
        if not pid:
            try:
                function()
            except BaseException as error:
                say(type(error).__name__)
            os._exit(0)
        os.waitpid(pid, 0)
"""


def test_r3_use_after_fork_raises_at_once_and_the_parent_goes_on() -> None:
    outcome = run_program(
        CHILD
        + """
    with SandboxClient() as client, client.sandbox() as sandbox:
        handle = sandbox.run("lines 300", wait=False)
        next(handle)
        in_child(lambda: sandbox.run("echo never"))
        in_child(lambda: list(handle))
        in_child(lambda: client.list_sandboxes())
        in_child(client.close)
        say(sandbox.run("echo parent").stdout, len(list(handle)))
    end()
    """
    )
    assert outcome.said == ["ForkedClientError"] * 3 + ["parent 299"]
    assert outcome.exit_code == 0
    assert outcome.exit_seconds < 1


def test_r3_a_child_may_leave_with_blocks_and_exit() -> None:
    outcome = run_program("""
        with SandboxClient() as client, client.sandbox() as sandbox:
            if not (pid := os.fork()):
                sys.exit(3)
            say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), client.log)
        say(client.log)
    """)
    assert outcome.said == ["3 ['open', 'create box']", "['open', 'create box', 'delete box', 'closed']"]
    assert "Error" not in outcome.errors


def test_r3_a_client_that_was_not_used_before_the_fork_works_in_the_child() -> None:
    outcome = run_program(
        CHILD
        + """
    client = SandboxClient()
    def use():
        with client:
            say(client.get_sandbox("box").run("echo child").stdout)
    in_child(use)
    with client:
        say(client.get_sandbox("box").run("echo parent").stdout)
    """
    )
    assert outcome.said == ["child", "parent"]


def test_r3_a_fork_in_a_callback_ends_the_call_in_the_child() -> None:
    outcome = run_program("""
        with SandboxClient() as client:
            pids = [os.getpid()]
            try:
                client.get_sandbox("box").run("echo hi", on_stdout=lambda _: pids.append(os.fork()))
            except ForkedClientError:
                say("child")
                os._exit(0)
            os.waitpid(pids[1], 0)
            say("parent")
    """)
    assert outcome.said == ["child", "parent"]


def test_r3_a_fork_while_other_threads_call() -> None:
    outcome = run_program(
        CHILD
        + """
    with SandboxClient() as client:
        sandbox = client.get_sandbox("box")
        stop = threading.Event()
        def work():
            while not stop.is_set():
                sandbox.run("echo x")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            in_child(lambda: sandbox.run("echo never"))
        stop.set()
        for thread in threads:
            thread.join()
    """
    )
    assert outcome.said == ["ForkedClientError"] * 10


def test_r3_multiprocessing_by_fork() -> None:
    outcome = run_program("""
        import multiprocessing
        def child():
            try:
                client.list_sandboxes()
            except ForkedClientError:
                with SandboxClient() as fresh:
                    say(len(fresh.list_sandboxes()))
        with SandboxClient() as client:
            client.list_sandboxes()
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            say(process.exitcode)
    """)
    assert outcome.said == ["2", "0"]


@pytest.mark.parametrize("use", [
    "client.list_sandboxes()",
    "sandbox = client.sandbox()",
    "sandbox = client.sandbox().__enter__()",
    "handle = client.get_sandbox('box').run('hang', wait=False)",
    "client.get_sandbox('box').run('work')",
    "threading.Thread(target=client.get_sandbox('box').run, args=('hang',), daemon=True).start()",
    "client.get_sandbox('box').run('echo 1'); sys.exit(0)",
])  # fmt: skip
def test_r4_a_client_that_nobody_closed_lets_the_interpreter_exit_and_warns(use: str) -> None:
    outcome = run_program(f"""
        client = SandboxClient()
        atexit.register(end)
        {use}
    """)
    assert outcome.exit_code == 0
    assert outcome.exit_seconds < 1
    assert "ResourceWarning: SandboxClient was never closed" in outcome.errors
    assert "Traceback" not in outcome.errors
    assert "Error" not in outcome.errors


def test_r4_a_client_that_was_closed_or_never_used_says_nothing() -> None:
    outcome = run_program("""
        unused = SandboxClient()
        with SandboxClient() as client:
            client.list_sandboxes()
        end()
    """)
    assert (outcome.exit_code, outcome.errors) == (0, "")
    assert outcome.exit_seconds < 1


def test_r4_a_stubborn_command_does_not_hold_up_the_exit() -> None:
    outcome = run_program("""
        client = SandboxClient()
        sandbox = client.get_sandbox("box")
        threading.Thread(target=sandbox.run, args=("stubborn",), daemon=True).start()
        when(lambda: client.fills, end).join()
    """)
    assert outcome.exit_code == 0
    assert outcome.exit_seconds < 2  # 0.6 s when the machine is idle, instead of 3


def test_a_thread_of_the_user_may_go_on_after_the_main_thread() -> None:
    outcome = run_program("""
        client = SandboxClient()
        sandbox = client.get_sandbox("box")
        sandbox.run("work")
        def work():
            when(lambda: not threading.main_thread().is_alive(), lambda: None).join()
            say(sandbox.run("echo on").stdout)
            sandbox.run("work")
            end()
        threading.Thread(target=work).start()
    """)
    assert outcome.said == ["on"]
    assert outcome.exit_code == 0
    assert outcome.exit_seconds < 1


def test_an_atexit_handler_may_call_the_client() -> None:
    outcome = run_program("""
        client = SandboxClient()
        client.list_sandboxes()
        sandbox = client.sandbox()
        def goodbye():
            say(sandbox.run("echo goodbye").stdout)
            client.delete_sandbox("box")
            client.close()
            say(client.log)
        atexit.register(goodbye)
    """)
    assert outcome.said == ["goodbye", "['open', 'create box', 'run echo goodbye', 'delete box', 'closed']"]
    assert outcome.errors == ""


def test_a_client_that_is_collected_warns_and_its_thread_ends() -> None:
    outcome = run_program("""
        client = SandboxClient()
        handle = client.get_sandbox("box").run("lines 3", wait=False)
        del client
        say(len(list(handle)), threading.active_count())
        del handle
        when(lambda: threading.active_count() == 2, lambda: None).join()
        say(threading.active_count())
    """)
    assert outcome.said == ["3 2", "1"]
    assert "ResourceWarning: SandboxClient was never closed" in outcome.errors
