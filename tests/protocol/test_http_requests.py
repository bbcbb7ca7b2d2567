"""The control plane's requests, and what their answers become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_aio import errors
from sandbox_aio.models import ResourceStatus, RunConfig, SandboxRecord, Snapshot
from sandbox_aio.protocol.http_call import HttpCall, HttpResponse, Resend
from sandbox_aio.protocol.http_requests import BoxOptions, ControlPlane, box_changes

CONTROL = ControlPlane("http://h/api/v2/sandboxes", 10)


def ok(value: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status=status, body=json.dumps(value).encode())


def create(options: BoxOptions | None = None, **changes: Any) -> HttpCall[SandboxRecord]:
    arguments: dict[str, Any] = {"name": "box", "name_is_unique": True, "wait_for_ready": True, "timeout": 30}
    return CONTROL.create_box(options or BoxOptions(), **(arguments | changes))


def body(call: HttpCall[Any]) -> dict[str, Any]:
    assert call.body is not None
    assert call.headers == {"content-type": "application/json"}
    sent: dict[str, Any] = json.loads(call.body)
    return sent


def test_create_says_only_what_was_chosen() -> None:
    call = create(BoxOptions(snapshot_id="s", persistent=False))
    assert (call.method, call.url) == ("POST", "http://h/api/v2/sandboxes/boxes")
    assert body(call) == {
        "wait_for_ready": True,
        "timeout": 30,
        "snapshot_id": "s",
        "persistent": False,
        "name": "box",
    }
    assert call.timeout == 60
    assert call.read(ok({"name": "box"}, 201)) == SandboxRecord("box")
    with pytest.raises(errors.ResourceTimeoutError):
        call.read(ok({}, 408))


def test_create_without_waiting_sends_no_timeout() -> None:
    call = create(wait_for_ready=False)
    assert body(call) == {"wait_for_ready": False, "name": "box"}
    assert call.timeout == 30


def test_a_created_name_decides_whether_it_is_sent_again() -> None:
    assert create().resend is Resend.ALWAYS
    assert create(name_is_unique=False).resend is Resend.IF_REFUSED
    with pytest.raises(ValueError, match="not the name of a sandbox"):
        create(name="..")


def test_fractions_of_a_second_are_rounded_up() -> None:
    assert body(create(timeout=0.5))["timeout"] == 1


def test_a_snapshot_has_two_spellings_and_is_named_once() -> None:
    assert "snapshot_name" not in body(create(BoxOptions(snapshot="a", snapshot_name="b")))
    assert body(create(BoxOptions(snapshot_name="b")))["snapshot_name"] == "b"
    for twice in (BoxOptions(snapshot_id="a", snapshot="b"), BoxOptions(snapshot_id="a", snapshot_name="b")):
        with pytest.raises(ValueError, match="name the snapshot once"):
            create(twice)


@pytest.mark.parametrize("wrong", [-60, 1, 61])
@pytest.mark.parametrize("member", ["idle_ttl_seconds", "delete_after_stop_seconds"])
def test_lifetimes_are_whole_minutes(member: str, wrong: int) -> None:
    with pytest.raises(ValueError, match=f"{member} must be 0 or a positive multiple of 60, not {wrong}"):
        create(BoxOptions(**{member: wrong}))  # type: ignore[arg-type]
    assert body(create(BoxOptions(**{member: 0})))[member] == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{}, {"mode": "EXPLICIT"}, {"mode": "INHERIT", "permissions": ["a"]}])
def test_a_delegation_is_explicit(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="access_delegation must be"):
        create(BoxOptions(access_delegation=wrong))
    right = {"mode": "EXPLICIT", "permissions": ["a"]}
    assert body(create(BoxOptions(access_delegation=right)))["access_delegation"] == right


def test_run_config_comes_in_two_forms() -> None:
    for form in (RunConfig("me"), {"user": "me"}):
        assert body(create(BoxOptions(run_config=form)))["run_config"] == {"user": "me"}


def test_get() -> None:
    call = CONTROL.get_box("a/b")
    assert (call.method, call.url, call.body) == ("GET", "http://h/api/v2/sandboxes/boxes/a%2Fb", None)
    assert call.read(ok({"name": "box"})).name == "box"
    with pytest.raises(errors.ResourceNotFoundError):
        call.read(ok({}, 404))


def test_list() -> None:
    call = CONTROL.list_boxes()
    assert call.url == "http://h/api/v2/sandboxes/boxes"
    assert [record.name for record in call.read(ok({"sandboxes": [{"name": "a"}, {"name": "b"}]}))] == ["a", "b"]
    assert call.read(ok({})) == []
    with pytest.raises(errors.RemoteProtocolError, match="where a list of sandboxes was expected"):
        call.read(ok({"sandboxes": 3}))
    with pytest.raises(errors.RemoteProtocolError, match="where a sandbox was expected"):
        call.read(ok({"sandboxes": [3]}))
    with pytest.raises(errors.SandboxAPIError):
        call.read(ok({}, 404))


def test_update() -> None:
    changes = box_changes(
        new_name="new",
        idle_ttl_seconds=60,
        delete_after_stop_seconds=None,
        proxy_config={"rules": []},
        run_config=RunConfig("me"),
    )
    call = CONTROL.update_box("old", changes)
    assert (call.method, call.url) == ("PATCH", "http://h/api/v2/sandboxes/boxes/old")
    assert body(call) == {
        "name": "new",
        "idle_ttl_seconds": 60,
        "proxy_config": {"rules": []},
        "run_config": {"user": "me"},
    }
    assert call.resend is Resend.IF_REFUSED
    assert call.read(ok({"name": "new"})).name == "new"
    with pytest.raises(errors.ResourceNameConflictError):
        call.read(ok({}, 409))


def test_an_empty_update_is_harmless() -> None:
    nothing: Any = dict.fromkeys(
        ["new_name", "idle_ttl_seconds", "delete_after_stop_seconds", "proxy_config", "run_config"]
    )
    call = CONTROL.update_box("box", box_changes(**nothing))
    assert body(call) == {}
    assert call.resend is Resend.ALWAYS
    with pytest.raises(ValueError, match="not the name"):
        box_changes(**(nothing | {"new_name": ""}))


def test_delete_forgives_a_404_after_an_unknown_outcome() -> None:
    call = CONTROL.delete_box("box")
    assert call.method == "DELETE"
    call.read(HttpResponse(status=204))
    call.read(HttpResponse(status=404, sent_before=True))
    with pytest.raises(errors.ResourceNotFoundError):
        call.read(HttpResponse(status=404))


def test_status() -> None:
    call = CONTROL.box_status("box")
    assert call.url == "http://h/api/v2/sandboxes/boxes/box/status"
    assert call.read(ok({"status": "ready"})) == ResourceStatus("ready")
    with pytest.raises(errors.ResourceNotFoundError):
        call.read(ok({}, 404))


def test_start_and_stop() -> None:
    for call, verb in ((CONTROL.start_box("box"), "start"), (CONTROL.stop_box("box"), "stop")):
        assert (call.method, call.url) == ("POST", f"http://h/api/v2/sandboxes/boxes/box/{verb}")
        assert body(call) == {}
        assert call.timeout == 30
        call.read(HttpResponse(status=204))
        with pytest.raises(errors.ResourceNotFoundError):
            call.read(ok({}, 404))


def test_snapshots() -> None:
    call = CONTROL.get_snapshot("ns/img:v1")
    assert call.url == "http://h/api/v2/sandboxes/snapshots/ns%2Fimg:v1"
    assert call.read(ok({"id": "1"})) == Snapshot("1", "", "building", 0)
    with pytest.raises(errors.ResourceNotFoundError) as caught:
        call.read(ok({}, 404))
    assert caught.value.resource_type == "snapshot"


def test_list_snapshots() -> None:
    assert CONTROL.list_snapshots().url == "http://h/api/v2/sandboxes/snapshots"
    call = CONTROL.list_snapshots(name_contains="a b", limit=0, offset=2)
    assert call.url == "http://h/api/v2/sandboxes/snapshots?name_contains=a+b&limit=0&offset=2"
    assert [snapshot.id for snapshot in call.read(ok({"snapshots": [{"id": "1"}]}))] == ["1"]
