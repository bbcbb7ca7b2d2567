"""The exception tree: constructors, attributes, words, and that it survives being sent to another process."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import pytest

from sandbox_aio import errors

CASES: list[tuple[errors.SandboxClientError, str, dict[str, Any]]] = [
    (errors.SandboxClientError("m"), "m", {}),
    (errors.SandboxAPIError("m"), "m", {}),
    (errors.SandboxAuthenticationError("m"), "m", {}),
    (errors.SandboxNotReadyError("m"), "m", {}),
    (errors.DataplaneNotConfiguredError("m"), "m", {}),
    (errors.EmbeddedServerError("m."), "m.", {"hint": None}),
    (errors.EmbeddedServerError("m.", "do it"), "m. Hint: do it", {"hint": "do it"}),
    (errors.LocalProtocolError("m"), "m", {}),
    (errors.ClientClosedError("m"), "m", {}),
    (errors.ForkedClientError("m"), "m", {}),
    (errors.SandboxConnectionError("m"), "m", {}),
    (errors.RequestTimeoutError("m", 3), "m", {"timeout": 3}),
    (errors.RemoteProtocolError("m"), "m", {}),
    (errors.SandboxServerReloadError("m"), "m", {}),
    (errors.SandboxRetryableConnectionError("m", retry_after=2.5), "m", {"retry_after": 2.5}),
    (errors.SandboxConnectTimeoutError("m"), "m", {"retry_after": None}),
    (errors.ResourceNotFoundError("m", "file"), "m", {"resource_type": "file"}),
    (errors.ResourceInUseError("m"), "m", {"resource_type": None}),
    (errors.ResourceAlreadyExistsError("m", "sandbox"), "m", {"resource_type": "sandbox"}),
    (errors.ResourceNameConflictError("m", "sandbox"), "m", {"resource_type": "sandbox"}),
    (
        errors.ResourceTimeoutError("m", "sandbox", "stopped"),
        "m (last_status: stopped)",
        {"resource_type": "sandbox", "last_status": "stopped"},
    ),
    (errors.ResourceTimeoutError("m"), "m", {"resource_type": None, "last_status": None}),
    (
        errors.ResourceCreationError("m", "sandbox", "ImagePull"),
        "m [ImagePull]",
        {"resource_type": "sandbox", "error_type": "ImagePull"},
    ),
    (errors.ResourceCreationError("m"), "m", {"error_type": None}),
    (
        errors.ValidationError("m", "name", [{"msg": "x"}], "E"),
        "m",
        {"field": "name", "details": [{"msg": "x"}], "error_type": "E"},
    ),
    (errors.ValidationError("m"), "m", {"field": None, "details": [], "error_type": None}),
    (errors.QuotaExceededError("m", "cpu"), "m", {"quota_type": "cpu"}),
    (errors.SandboxOperationError("m", "read", "E"), "m [E]", {"operation": "read", "error_type": "E"}),
    (errors.SandboxOperationError("m"), "m", {"operation": None, "error_type": None}),
    (
        errors.CommandTimeoutError("m", 5),
        "m [CommandTimeout]",
        {"timeout": 5, "operation": "command", "error_type": "CommandTimeout"},
    ),
    (errors.TunnelError("m"), "m", {}),
    (errors.TunnelLocalPortError("m"), "m", {"errno": None}),
    (errors.TunnelPortNotAllowedError("m", port=80), "m", {"port": 80}),
    (errors.TunnelConnectionRefusedError("m", port=80), "m", {"port": 80}),
    (errors.TunnelUnsupportedVersionError("m"), "m", {}),
    (errors.SandboxTokenVerificationError("m"), "m", {}),
]


@pytest.mark.parametrize(("error", "text", "attributes"), CASES)
def test_words_and_attributes_survive_the_way_to_another_process(
    error: errors.SandboxClientError, text: str, attributes: dict[str, Any]
) -> None:
    error.add_note("a note")
    for twin in (error, copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == text
        assert {name: getattr(twin, name) for name in attributes} == attributes
        assert twin.__notes__ == ["a note"]


def test_every_error_is_tested() -> None:
    assert {type(error).__name__ for error, _, _ in CASES} == set(errors.__all__)


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    tree = inspect.cleandoc(errors.__doc__ or "").partition("::\n\n")[2].partition("\n\nA wrong")[0]
    for line in inspect.cleandoc(tree).splitlines():
        match = re.match(r"([│ ├└─]*)(\w+)", line)
        assert match
        depth = len(match[1]) // 4
        path[depth:] = [match[2]]
        if depth:
            drawn[match[2]] = path[depth - 1]
    real = {}
    for name in errors.__all__:
        kind = getattr(errors, name)
        parents = [parent.__name__ for parent in kind.__mro__[1:] if parent.__name__ in errors.__all__]
        if parents:
            real[name] = parents[0]
    assert drawn == real
