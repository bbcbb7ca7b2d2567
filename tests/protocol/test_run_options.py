"""From the arguments of `run()` to the frame."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from sandbox_aio.models import RunConfig
from sandbox_aio.protocol.frames import Execute
from sandbox_aio.protocol.run_options import execute_frame

DEFAULTS: dict[str, Any] = {
    "command_id": uuid.UUID(int=1).hex,
    "timeout": 60,
    "env": None,
    "cwd": None,
    "run_config": None,
    "close_input": None,
    "shell": "/bin/bash",
    "idle_timeout": 300,
    "kill_on_disconnect": False,
    "ttl_seconds": 600,
    "pty": False,
    "wait": True,
    "callbacks": False,
}


def frame(command: Any = "true", **options: Any) -> Execute:
    return execute_frame(command, **(DEFAULTS | options))


@pytest.mark.parametrize("name", ["timeout", "idle_timeout", "ttl_seconds"])
def test_a_duration_is_a_number(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a number of seconds, not str"):
        frame(**{name: "5"})


def test_the_defaults_are_those_of_the_wire() -> None:
    assert frame() == Execute(command="true", command_id=uuid.UUID(int=1).hex, close_stdin=True)


@pytest.mark.parametrize(
    ("wait", "pty", "close_input", "closed"),
    [
        (True, False, None, True),
        (False, False, None, False),
        (True, False, False, False),
        (False, False, True, True),
        (True, True, None, False),
        (False, True, True, False),
    ],
)
def test_input_is_closed_when_nobody_can_write(wait: bool, pty: bool, close_input: bool | None, closed: bool) -> None:
    assert frame(wait=wait, pty=pty, close_input=close_input).close_stdin is closed


def test_everything_arrives_in_the_frame() -> None:
    made = frame(
        "make",
        timeout=0,
        env={"A": "=1"},
        cwd="/app",
        shell="/bin/sh",
        idle_timeout=-1,
        ttl_seconds=-1,
        kill_on_disconnect=True,
        pty=True,
        wait=False,
    )
    assert (made.timeout_seconds, made.idle_timeout_seconds, made.ttl_seconds) == (0, -1, -1)
    assert (made.env, made.cwd, made.shell) == ({"A": "=1"}, "/app", "/bin/sh")
    assert made.kill_on_disconnect
    assert made.pty


def test_run_config_comes_in_two_forms() -> None:
    assert frame(run_config=RunConfig("me", env_vars={"A": "1"})).run_config == {"user": "me", "env_vars": {"A": "1"}}
    assert frame(run_config={"user": "me"}).run_config == {"user": "me"}
    assert frame(run_config=RunConfig()).run_config is None


def test_seconds_are_whole_on_the_wire() -> None:
    made = frame(timeout=0.2, idle_timeout=1.5, ttl_seconds=2.0)
    assert (made.timeout_seconds, made.idle_timeout_seconds, made.ttl_seconds) == (1, 2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wait": False, "callbacks": True}, "need wait=True"),
        ({"run_config": RunConfig(), "env": {}}, "run_config excludes env and cwd"),
        ({"run_config": RunConfig(), "cwd": "/"}, "run_config excludes env and cwd"),
        ({"timeout": -1}, "timeout must be a number of seconds, not -1"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"timeout": float("inf")}, "timeout must be"),
        ({"idle_timeout": -2}, "idle_timeout must be a number of seconds, or -1 for never, not -2"),
        ({"ttl_seconds": -0.5}, "ttl_seconds must be"),
        ({"env": {"": "x"}}, "not the name of an environment variable"),
        ({"env": {"A=B": "x"}}, "not the name of an environment variable"),
        ({"env": {"A": "x\0"}}, "the variable 'A' holds a NUL"),
        ({"command": "a\0"}, "command holds a NUL"),
        ({"cwd": "/\0"}, "cwd holds a NUL"),
        ({"shell": "\0"}, "shell holds a NUL"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame(**options)


@pytest.mark.parametrize("options", [{"command": None}, {"command": b"ls"}, {"env": {"A": 1}}, {"cwd": 3}])
def test_what_is_no_text_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        frame(**options)
