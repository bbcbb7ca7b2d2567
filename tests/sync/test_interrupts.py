"""R2: Ctrl-C cancels what runs, waits until it has cleaned up, and goes on; the client is usable afterwards."""

from __future__ import annotations

import pytest

from tests.sync.programs import run_program


@pytest.mark.parametrize("wait", [
    "sandbox.run('tidy')",
    "list(sandbox.run('tidy', wait=False))",
    "sandbox.run('tidy', wait=False).result",
])  # fmt: skip
def test_r2_ctrl_c_waits_for_the_unwinding_and_leaves_the_client_usable(wait: str) -> None:
    outcome = run_program(f"""
        with SandboxClient() as client, client.sandbox() as sandbox:
            when(lambda: client.fills, interrupt)
            try:
                {wait}
            except KeyboardInterrupt:
                say("interrupted", client.log[-1])
            say(sandbox.run("echo usable").stdout)
        say(*client.log[-2:])
        end()
    """)
    assert outcome.said == ["interrupted unwound", "usable", "delete box closed"]
    assert (outcome.exit_code, outcome.errors) == (0, "")
    assert outcome.exit_seconds < 1


def test_r2_an_interrupt_that_nobody_catches_deletes_the_sandbox() -> None:
    outcome = run_program("""
        client = SandboxClient()
        atexit.register(lambda: say(*client.log[-3:]))
        with client, client.sandbox() as sandbox:
            when(lambda: client.fills, interrupt)
            sandbox.run("tidy")
    """)
    assert outcome.said == ["unwound delete box closed"]
    assert outcome.errors.endswith("KeyboardInterrupt\n")


def test_r2_while_a_sandbox_is_made_none_is_left() -> None:
    outcome = run_program("""
        with SandboxClient() as client:
            when(lambda: "create slow" in client.log, interrupt)
            try:
                client.sandbox(name="slow")
            except KeyboardInterrupt:
                say(client.log)
    """)
    assert outcome.said == ["['open', 'create slow']"]


def test_r2_during_a_callback_the_command_is_cancelled() -> None:
    outcome = run_program("""
        def callback(text):
            interrupt()
            time.sleep(10)

        with SandboxClient() as client, client.sandbox() as sandbox:
            try:
                sandbox.run("lines 5", on_stdout=callback)
            except KeyboardInterrupt:
                say(sandbox.run("echo usable").stdout)
        end()
    """)
    assert outcome.said == ["usable"]
    assert outcome.exit_seconds < 1


def test_r2_a_second_interrupt_does_not_wait() -> None:
    outcome = run_program("""
        client = SandboxClient()
        sandbox = client.get_sandbox("box")
        when(lambda: client.fills, interrupt)
        def again():
            time.sleep(0.3)
            interrupt()
        when(lambda: client.fills, again)
        began = time.monotonic()
        try:
            sandbox.run("stubborn")
        except KeyboardInterrupt:
            say(time.monotonic() - began < 2, "unwound" in client.log)
        client.close()
        say("unwound" in client.log)
    """)
    assert outcome.said == ["True False", "True"]


def test_r2_another_thread_goes_on_when_the_main_thread_is_interrupted() -> None:
    outcome = run_program("""
        with SandboxClient() as client:
            sandbox = client.get_sandbox("box")
            handle = sandbox.run("cat", wait=False)
            seen, over = [], threading.Event()
            def iterate():
                seen.extend(chunk.data for chunk in handle)
                over.set()
            try:
                when(lambda: client.fills, interrupt)
                threading.Thread(target=iterate).start()
                over.wait(10)
            except KeyboardInterrupt:
                handle.send_input("still here")
                handle.close_input()
            over.wait(10)
            say(seen)
    """)
    assert (outcome.said, outcome.errors) == (["['still here']"], "")


def test_r2_any_signal_handler_that_raises_cancels() -> None:
    outcome = run_program("""
        def too_late(*_):
            raise TimeoutError("alarm")
        signal.signal(signal.SIGALRM, too_late)
        with SandboxClient() as client:
            sandbox = client.get_sandbox("box")
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            try:
                sandbox.run("tidy")
            except TimeoutError as error:
                say(error, client.log[-1])
    """)
    assert outcome.said == ["alarm unwound"]


def test_r2_interrupts_at_any_moment_leave_the_client_usable() -> None:
    outcome = run_program("""
        import random
        chance = random.Random(5)
        over = threading.Event()

        def poke():
            for _ in range(200):
                over.wait(0.003 + chance.random() * 0.007)
                interrupt()
            over.set()

        client = SandboxClient()
        sandbox = client.get_sandbox("box")
        poker = threading.Thread(target=poke, daemon=True)
        interrupted = 0
        while not over.is_set():
            try:
                if not poker.is_alive():
                    poker.start()
                while not over.is_set():
                    sandbox.run("echo hi")
                    list(sandbox.run("lines 150", wait=False))
                    sandbox.run("lines 150", on_stdout=len)
                    with client.sandbox() as another:
                        another.run("tidy" if chance.random() < 0.02 else "echo hi")
            except KeyboardInterrupt:
                interrupted += 1
        poker.join()
        say(interrupted > 100, sandbox.run("echo usable").stdout)
        client.close()
        say(threading.active_count())
        end()
    """)
    assert (outcome.said, outcome.exit_code) == (["True usable", "1"], 0), outcome.errors
    assert outcome.exit_seconds < 1
