"""The rules that `conftest.py` and `leaks.py` hold are tested on small suites that break them."""

from __future__ import annotations

from textwrap import dedent

import pytest

from tests.sources import ROOT

pytest_plugins = ["pytester"]


CONFTEST = (ROOT / "tests/conftest.py").read_text()
CONFIGURATION = (ROOT / "pyproject.toml").read_text().replace('"."', f'"{ROOT}"').replace('testpaths = ["tests"]', "")


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    """An empty suite under our configuration."""
    pytester.makepyprojecttoml(CONFIGURATION)
    pytester.makeconftest(CONFTEST)
    return pytester


def outcomes(suite: pytest.Pytester, test: str) -> dict[str, int]:
    """Run a file with `test` in it and return how many tests came to what."""
    suite.makepyfile(dedent(test))
    return suite.runpytest_subprocess(timeout=60).parseoutcomes()


def test_a_skip_fails(suite: pytest.Pytester) -> None:
    test = """
    import pytest
    def test_within(): pytest.skip("why")
    @pytest.mark.skip(reason="why")
    def test_by_a_mark(): pass
    """
    assert outcomes(suite, test) == {"failed": 1, "errors": 1}


def test_a_skipped_module_fails(suite: pytest.Pytester) -> None:
    test = """
    import pytest
    pytest.importorskip("nothing_of_this_name")
    def test(): pass
    """
    assert outcomes(suite, test) == {"errors": 1}


def test_an_ordinary_user_is_told_what_did_not_run(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST.replace("import os\n", "import os\nos.geteuid = lambda: 1000\n"))
    suite.makepyfile("import pytest\n@pytest.mark.root\ndef test_mount(): assert False\ndef test_other(): pass")
    result = suite.runpytest_subprocess(timeout=60)
    assert result.parseoutcomes() == {"passed": 1, "deselected": 1}
    result.stdout.fnmatch_lines(["*1 tests need root and did not run*", "*::test_mount"])


def test_async_tests_run_on_both_loops_and_fixtures_end_before_the_count(suite: pytest.Pytester) -> None:
    test = """
    import anyio, asyncio, pytest, subprocess, trio
    pytestmark = pytest.mark.anyio
    @pytest.fixture
    async def group():
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield group
            group.cancel_scope.cancel()
    @pytest.fixture(scope="module")
    def server():
        with subprocess.Popen(["sleep", "100"]) as server:
            yield server
            server.kill()
    async def test_loop(anyio_backend_name, server):
        asyncio.get_running_loop() if anyio_backend_name == "asyncio" else trio.lowlevel.current_task()
    async def test_fixture(group, server):
        await anyio.to_thread.run_sync(int)
    """
    assert outcomes(suite, test) == {"passed": 4}


def test_a_leak_fails(suite: pytest.Pytester) -> None:
    test = """
    import asyncio, anyio, pytest, socket, subprocess, sys, threading, trio
    tests = sys.modules["tests.leaks"]
    tests.GRACE = 0.1
    done = threading.Event()

    def test_descriptor():
        global kept_socket
        kept_socket = socket.socket()

    def test_process():
        global kept_process
        kept_process = subprocess.Popen(["sleep", "100"])

    def test_thread():
        threading.Thread(target=done.wait).start()

    @pytest.mark.anyio
    async def test_task(anyio_backend_name):
        if anyio_backend_name == "trio":
            trio.lowlevel.spawn_system_task(trio.sleep_forever)
        else:
            global kept_task
            kept_task = asyncio.create_task(asyncio.sleep(100))

    @pytest.mark.leaks("nobody can stop it before the module ends")
    def test_marked():
        threading.Thread(target=done.wait).start()

    @pytest.fixture(scope="module", autouse=True)
    def tidy():
        yield
        done.set()
        kept_socket.close()
        kept_process.kill()
        kept_process.wait()
    """
    assert outcomes(suite, test) == {"passed": 6, "errors": 5}


def test_a_warning_fails(suite: pytest.Pytester) -> None:
    assert outcomes(suite, "import warnings\ndef test(): warnings.warn('careful')") == {"failed": 1}
