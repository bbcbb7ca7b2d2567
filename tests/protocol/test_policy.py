"""`protocol/policy.py`: the bounds that an environment asks for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sandbox_aio.errors import LocalProtocolError
from sandbox_aio.protocol.policy import CommandPolicy, Endpoint, policy_from

PREFIX = "LANGSMITH_SANDBOX_WS_TIMEOUT_"


def test_an_empty_environment_asks_for_the_defaults() -> None:
    assert policy_from({}) == CommandPolicy() == policy_from({f"{PREFIX}OPEN": " "})


def test_every_bound_can_be_set() -> None:
    names = {"OPEN": "1", "CONNECT_BUDGET": "2.5", "PING_INTERVAL": "3", "PING": "4"}
    policy = policy_from({PREFIX + name: value for name, value in names.items()})
    assert (policy.open_timeout, policy.start_timeout) == (1.0, 2.5)
    assert (policy.limits.ping_interval, policy.limits.ping_timeout) == (3.0, 4.0)


@pytest.mark.parametrize("off", ["0", "-1"])
def test_zero_and_less_take_a_bound_away(off: str) -> None:
    policy = policy_from({f"{PREFIX}OPEN": off, f"{PREFIX}PING_INTERVAL": off})
    assert policy.open_timeout == math.inf
    assert policy.limits.ping_interval is None
    assert policy_from({f"{PREFIX}PING": off}).limits.ping_interval is None


@pytest.mark.parametrize("text", ["soon", "nan"])
def test_what_is_no_number_is_warned_of(text: str) -> None:
    with pytest.warns(UserWarning, match="OPEN='?" + text):
        assert policy_from({f"{PREFIX}OPEN": text}).open_timeout == 30.0


def test_the_older_prefix_does_and_the_newer_one_wins() -> None:
    older = "LANGCHAIN_SANDBOX_WS_TIMEOUT_OPEN"
    assert policy_from({older: "7"}).open_timeout == 7.0
    assert policy_from({older: "7", f"{PREFIX}OPEN": "8"}).open_timeout == 8.0


@pytest.mark.parametrize(
    "members",
    [{"host": "a b"}, {"target": "/a b"}, {"headers": {"host": "x"}}, {"headers": {"x": " padded"}}],
)
def test_an_endpoint_that_could_never_be_asked_is_refused_at_once(members: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        Endpoint(**{"host": "box", "target": "/execute/ws", **members})
