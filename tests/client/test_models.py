"""The data classes: what they read, what they forgive, and what they refuse by name."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio import models
from sandbox_aio.errors import RemoteProtocolError
from sandbox_aio.models import (
    ExecutionResult,
    FileChunk,
    FileInfo,
    GlobResult,
    GrepMatch,
    OutputChunk,
    OutputGap,
    ResourceStatus,
    RunConfig,
    SandboxRecord,
    Snapshot,
    SnapshotTag,
)

if TYPE_CHECKING:
    from collections.abc import Callable

READERS: list[Callable[[Any], object]] = [
    getattr(models, name).from_dict for name in models.__all__ if hasattr(getattr(models, name), "from_dict")
]


def test_missing_members_and_nulls_take_the_default() -> None:
    assert SandboxRecord.from_dict({"name": "a", "status": None}) == SandboxRecord("a", status="ready")
    assert Snapshot.from_dict({"id": "1", "tags": None, "x": 1}) == Snapshot("1", "", "building", 0)
    assert ResourceStatus.from_dict({}) == ResourceStatus("provisioning")
    assert ExecutionResult.from_dict({}) == ExecutionResult("", "", -1)
    assert FileInfo.from_dict({"path": "/a"}) == FileInfo("/a", False, 0, None)
    assert GrepMatch.from_dict({}) == GrepMatch("", 0, "")


def test_everything_that_is_known_is_read() -> None:
    record = SandboxRecord.from_dict(
        {
            "name": "a",
            "vcpus": 0.5,
            "mem_bytes": 2.0,
            "labels": {"a": "b"},
            "run_config": {"user": "me", "work_dir": "/", "env_vars": {"A": "1"}},
            "access_delegation": {"mode": "EXPLICIT", "permissions": ["a"], "more": 1},
        }
    )
    assert (record.vcpus, record.mem_bytes, record.labels) == (0.5, 2, {"a": "b"})
    assert record.run_config == RunConfig("me", "/", {"A": "1"})
    assert record.access_delegation == {"mode": "EXPLICIT", "permissions": ["a"]}
    assert SnapshotTag.from_dict({"tag": "latest", "snapshot_id": "1"}) == SnapshotTag("latest", "1")


@pytest.mark.parametrize("value", [{"mode": "INHERIT", "permissions": ["a"]}, {"mode": "EXPLICIT"}, {}, [], "EXPLICIT"])
def test_other_delegations_do_not_count(value: object) -> None:
    assert SandboxRecord.from_dict({"name": "a", "access_delegation": value}).access_delegation is None


@pytest.mark.parametrize(
    ("read", "data", "message"),
    [
        (SandboxRecord.from_dict, [], "where a sandbox was expected"),
        (SandboxRecord.from_dict, {}, "a sandbox without 'name'"),
        (SandboxRecord.from_dict, {"name": 3}, "a sandbox whose 'name' is 3, not str"),
        (SandboxRecord.from_dict, {"name": "a", "mem_bytes": True}, "'mem_bytes' is True, not int"),
        (SandboxRecord.from_dict, {"name": "a", "vcpus": "x"}, "'vcpus' is 'x', not int"),
        (SandboxRecord.from_dict, {"name": "a", "labels": {"a": 1}}, "a sandbox's labels whose 'a' is 1"),
        (Snapshot.from_dict, {"id": "1", "tags": [1]}, "where a text was expected"),
        (GlobResult.from_dict, {"matches": {}}, "whose 'matches' is {}, not list"),
        (ResourceStatus.from_dict, {"status": 1}, "a status whose 'status' is 1"),
    ],
)
def test_the_wrong_member_is_named(read: Callable[[Any], object], data: object, message: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read(data)
    assert message in str(caught.value)


classes = [value for value in (getattr(models, name) for name in models.__all__) if attrs.has(value)]
member_names = sorted({field.name for cls in classes for field in attrs.fields(cls)})
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(member_names) | st.text(), inner, max_size=4)
    ),
)


@given(st.sampled_from(READERS), values)
def test_any_json_at_all_is_read_or_refused(read: Callable[[Any], object], data: object) -> None:
    try:
        read(data)
    except RemoteProtocolError as error:
        assert "the server sent" in str(error)


def test_output_can_be_had_as_bytes() -> None:
    chunk = OutputChunk("stdout", "h\xe9", 7)
    result = ExecutionResult("h\xe9", "\N{REPLACEMENT CHARACTER}", 0)
    assert (chunk.data_bytes, result.stdout_bytes) == (b"h\xc3\xa9", b"h\xc3\xa9")
    assert result.stderr_bytes == b"\xef\xbf\xbd"


def test_results_and_chunks() -> None:
    assert ExecutionResult("", "", 0).success
    assert not ExecutionResult("", "", 137, killed=True).success
    assert OutputChunk("stdout", "a") == OutputChunk("stdout", "a", 0)
    gap = OutputGap("stderr", "", 5, missing_bytes=3)
    assert (gap.data, gap.offset, gap.missing_bytes) == ("", 5, 3)
    assert FileChunk(b"abc", start=4).end == 7
    assert pickle.loads(pickle.dumps(gap)) == gap
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        gap.offset = 3  # type: ignore[misc]


def test_a_run_config_says_only_what_is_set() -> None:
    assert RunConfig().to_payload() == {}
    assert RunConfig("me", "/", {}).to_payload() == {"user": "me", "work_dir": "/", "env_vars": {}}
