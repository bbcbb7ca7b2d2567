"""`tools/gen_sync.py`: every public thing of the async client has its twin, and `--check` notices what is wrong."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

import sandbox_aio
import sandbox_aio.sync
from sandbox_aio.client.client import AsyncSandboxClient
from sandbox_aio.client.command import AsyncCommandHandle
from sandbox_aio.client.sandbox import AsyncSandbox
from tests.sync.facade import FAKE_CLIENT, generate
from tools import gen_sync

ROOT = Path(gen_sync.__file__).parent.parent
CHECK = [str(ROOT / "tools/gen_sync.py"), "--check"]
INTERPRETERS = [sys.executable, *map(str, sorted(Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python")))]
"""The one that runs the tests, and whatever pyenv has besides."""
PAIRS = [
    (AsyncSandboxClient, sandbox_aio.SandboxClient),
    (AsyncSandbox, sandbox_aio.Sandbox),
    (AsyncCommandHandle, sandbox_aio.CommandHandle),
    (sandbox_aio.AsyncServiceURL, sandbox_aio.ServiceURL),
    (sandbox_aio.AsyncServiceResponse, sandbox_aio.ServiceResponse),
]
PROPERTIES: dict[str, str] = tomllib.loads(gen_sync.RULES.read_text())["properties"]
RENAMED = {"aclose": "close", "to_sync": "to_async"} | PROPERTIES


def generated_from(tmp_path: Path, source: str) -> str:
    """Generate the facade of one module."""
    path = tmp_path / "module.py"
    path.write_text(textwrap.dedent(source))
    return gen_sync.generator_for([path], "tests.module").generate()


def public(cls: type) -> dict[str, Any]:
    return {name: member for name, member in vars(cls).items() if not name.startswith("_")}


@pytest.mark.parametrize("python", INTERPRETERS)
def test_the_text_does_not_depend_on_the_python(python: str) -> None:
    run = subprocess.run([python, *CHECK], capture_output=True, text=True, timeout=30, check=False)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


@pytest.mark.parametrize(("original", "twin"), PAIRS, ids=lambda cls: cls.__name__)
def test_every_public_member_has_a_twin(original: type, twin: type) -> None:
    names = {RENAMED.get(name, name) for name in public(original)} | set(original.__annotations__)
    assert {name for name in names if not name.startswith("_")} <= set(dir(twin))


@pytest.mark.parametrize(("original", "twin"), PAIRS, ids=lambda cls: cls.__name__)
def test_twins_take_the_same_arguments_and_never_a_coroutine(original: type, twin: type) -> None:
    for name, method in public(original).items():
        if name in PROPERTIES:
            continue
        if not inspect.isfunction(method):
            continue
        other = getattr(twin, RENAMED.get(name, name))
        assert not inspect.iscoroutinefunction(other)
        here, there = inspect.signature(method).parameters, inspect.signature(other).parameters
        assert {key: (item.kind, item.default) for key, item in here.items()} == {
            key: (item.kind, item.default) for key, item in there.items()
        }, name


@pytest.mark.parametrize("twin", [twin for _, twin in PAIRS], ids=lambda cls: cls.__name__)
def test_docstrings_speak_of_calls_that_block(twin: type) -> None:
    for name, member in {**public(twin), "__doc__": twin}.items():
        words = inspect.getdoc(member) or ""
        if name != "to_async":
            assert not re.search(r"\bawait|\basync\b|\bAsync[A-Z]|\baclose|\btrio\b|\bCancel", words), name


def test_all_twins_are_exported() -> None:
    from sandbox_aio.sync import _generated

    assert set(_generated.__all__) < set(sandbox_aio.sync.__all__)


def test_examples_in_docstrings_are_turned() -> None:
    assert (
        '    with SandboxClient() as client, client.sandbox() as sandbox:\n            sandbox.run("echo hi")'
        in generate()
    )


def test_a_new_coroutine_gets_a_twin(tmp_path: Path) -> None:
    text = generated_from(
        tmp_path,
        '''
        from typing import Self

        class AsyncThing:
            """A thing."""

            async def twins(self, number: int = 2, *, kind: str | None = None) -> list[AsyncThing]:
                """Await some, with `await thing.twins()`."""
        ''',
    )
    assert (
        "    def twins(self, number: int = 2, *, kind: str | None = None) -> list[Thing]:\n"
        '        """Await some, with `thing.twins()`."""\n'
        "        with unframed:\n"
        "            twins = self._bridge.call(self._async.twins, number, kind=kind)\n"
        "            return [Thing(self._bridge, twin) for twin in twins]\n"
    ) in text


def test_a_method_that_the_rules_list_is_a_property(tmp_path: Path) -> None:
    text = generated_from(
        tmp_path,
        """
        class AsyncThing:
            @property
            def token(self) -> str:
                \"\"\"The last one.\"\"\"
            async def get_token(self) -> str:
                \"\"\"A valid one.\"\"\"
        """,
    )
    assert text.count("def ") == 1
    assert (
        "    @property\n"
        "    def token(self) -> str:\n"
        '        """A valid one."""\n'
        "        with unframed:\n"
        "            return self._bridge.call(self._async.get_token)\n"
    ) in text


def test_keywords_of_any_name_are_passed_on(tmp_path: Path) -> None:
    text = generated_from(
        tmp_path,
        """
        from typing import Any
        class AsyncThing:
            async def request(self, path: str = "/", **options: Any) -> int: ...
        """,
    )
    assert 'def request(self, path: str = "/", **options: Any) -> int:' in text
    assert "self._bridge.call(lambda: self._async.request(path, **options))" in text


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        ("def __init__(self):\n        self.value = 1", "AsyncThing.value is public and has no annotation"),
        ("value = 1", "AsyncThing.value is public and has no annotation"),
        ("async def method(self): ...", "no annotation"),
        ("async def method(self, *args: int) -> None: ...", "no rule for the parameters of method"),
        ("@staticmethod\n    async def method() -> None: ...", "no rule for {'staticmethod'}"),
        ("async def method(self) -> dict[str, AsyncThing]: ...", "no rule for the result"),
    ],
)
def test_what_no_rule_covers_is_an_error(member: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(gen_sync.GenerationError, match=re.escape(complaint)):
        generated_from(tmp_path, f"class AsyncThing:\n    {member}\n")


def test_the_check_shows_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gen_sync, "OUTPUT", tmp_path / "_generated.py")
    generator = gen_sync.generator_for([FAKE_CLIENT], "tests.sync")
    text = generator.generate()
    generator.rules["words"] = {}
    generator.used_rules.update(generator.rules["verbatim"], generator.rules["properties"])
    gen_sync.OUTPUT.write_text(text)
    assert gen_sync.problems(generator, text) == ""
    gen_sync.OUTPUT.write_text(text[:-20])
    assert "+++ as it should be" in gen_sync.problems(generator, text)
    gen_sync.OUTPUT.unlink()
    assert "+class SandboxClient" in gen_sync.problems(generator, text)


def test_the_check_knows_every_file_and_every_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gen_sync, "OUTPUT", tmp_path / "_generated.py")
    generator = gen_sync.generator_for([FAKE_CLIENT], "tests.sync")
    text = generator.generate()
    generator.rules["renamed"]["nothing"] = "anything"
    (tmp_path / "stray.py").touch()
    found = gen_sync.problems(generator, text)
    assert "stray.py is neither written by hand nor by this tool" in found
    assert "nothing uses the rule nothing\n" in found
