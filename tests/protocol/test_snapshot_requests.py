"""The requests that make, name and remove snapshots, and what their answers become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_aio import errors
from sandbox_aio.models import RunConfig, Snapshot, SnapshotTag
from sandbox_aio.protocol.http_call import HttpCall, HttpResponse, Resend
from sandbox_aio.protocol.http_requests import ControlPlane
from sandbox_aio.protocol.snapshot_requests import (
    CaptureWish,
    SnapshotWish,
    delete_call,
    import_call,
    push_call,
    tag_call,
    tags_call,
)

CONTROL = ControlPlane("http://h/v2", 10)
MADE = {"id": "i", "name": "n", "status": "building", "fs_capacity_bytes": 5}


def ok(value: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status=status, body=json.dumps(value).encode())


def body(call: HttpCall[Any]) -> dict[str, Any]:
    assert call.body is not None
    sent: dict[str, Any] = json.loads(call.body)
    return sent


def test_a_snapshot_of_an_image_says_only_what_was_chosen() -> None:
    call = SnapshotWish(name="team/deb", docker_image="debian", fs_capacity_bytes=9).call(CONTROL)
    assert (call.method, call.url, call.resend) == ("POST", "http://h/v2/snapshots", Resend.IF_REFUSED)
    assert body(call) == {"name": "team/deb", "docker_image": "debian", "fs_capacity_bytes": 9}
    assert call.timeout == 30
    assert call.read(ok(MADE, 201)) == Snapshot("i", "n", "building", 5)
    chosen = SnapshotWish(
        name="n", docker_image="d", fs_capacity_bytes=1, tag="t", registry_id="r", run_config=RunConfig(user="u")
    )
    assert body(chosen.call(CONTROL))["run_config"] == {"user": "u"}
    with pytest.raises(errors.SandboxClientError):
        call.read(ok({"detail": {"error": "InvalidRequest", "message": "no"}}, 400))


@pytest.mark.parametrize("wrong", [{"name": ""}, {"docker_image": ""}, {"fs_capacity_bytes": 0}])
def test_what_no_service_takes_is_not_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"name|docker_image|fs_capacity_bytes"):
        SnapshotWish(**{"name": "n", "docker_image": "d", "fs_capacity_bytes": 1, **wrong})


def test_a_capture_is_of_a_sandbox() -> None:
    call = CaptureWish(name="n", tag="t", run_config={"work_dir": "/x"}).call(CONTROL, "my box")
    assert call.url == "http://h/v2/boxes/my%20box/snapshot"
    assert body(call) == {"name": "n", "tag": "t", "run_config": {"work_dir": "/x"}}
    with pytest.raises(errors.ResourceNotFoundError) as caught:
        call.read(ok({}, 404))
    assert caught.value.resource_type == "sandbox"
    with pytest.raises(ValueError, match="name"):
        CaptureWish(name="")
    with pytest.raises(ValueError, match="fs_capacity_bytes"):
        CaptureWish(name="n", fs_capacity_bytes=0)


def test_deleting_twice_is_deleting() -> None:
    call = delete_call(CONTROL, "n:t")
    assert (call.method, call.url) == ("DELETE", "http://h/v2/snapshots/n:t")
    call.read(HttpResponse(status=204, body=b""))
    call.read(HttpResponse(status=404, body=b"", sent_before=True))
    with pytest.raises(errors.ResourceNotFoundError):
        call.read(HttpResponse(status=404, body=b""))


def test_tags_are_listed() -> None:
    call = tags_call(CONTROL, "a/b")
    assert call.url == "http://h/v2/snapshots-by-name/a%2Fb"
    assert call.read(ok({"name": "a/b", "tags": [{"tag": "t", "snapshot_id": "i"}]})) == [SnapshotTag("t", "i")]
    assert call.read(ok({"name": "a/b"})) == []
    with pytest.raises(errors.RemoteProtocolError, match="a list of tags"):
        call.read(ok({"tags": "t"}))
    with pytest.raises(errors.ResourceNotFoundError):
        call.read(ok({}, 404))


def test_tags_are_given() -> None:
    call = tag_call(CONTROL, "n", "t", None)
    assert (call.url, body(call), call.resend) == ("http://h/v2/snapshots/n/tags", {"tag": "t"}, Resend.ALWAYS)
    assert body(tag_call(CONTROL, "n", "t", "m")) == {"tag": "t", "name": "m"}


def test_an_import_says_all_but_the_archive() -> None:
    call = import_call(CONTROL, "a/b", "t", 5, 600)
    assert (call.method, call.url) == ("POST", "http://h/v2/snapshots/import?name=a%2Fb&tag=t&fs_capacity_bytes=5")
    assert (call.body, call.headers, call.resend) == (None, {"content-type": "application/x-tar"}, Resend.IF_REFUSED)
    assert (call.timeout, call.unbounded_body) == (600, True)
    assert call.read(ok(MADE, 201)).id == "i"
    assert import_call(CONTROL, "n", None, None, 1).url == "http://h/v2/snapshots/import?name=n"
    with pytest.raises(ValueError, match="snapshot"):
        import_call(CONTROL, "", None, None, 1)
    with pytest.raises(ValueError, match="fs_capacity_bytes"):
        import_call(CONTROL, "n", None, 0, 1)


def test_a_push_waits_and_tells_the_digest() -> None:
    call = push_call(CONTROL, "n:t", "h/i", None, 600)
    assert (call.url, body(call), call.timeout) == ("http://h/v2/snapshots/n:t/push", {"image": "h/i"}, 600)
    assert call.read(ok({"digest": "sha256:1"})) == "sha256:1"
    assert body(push_call(CONTROL, "n", "i", "r", 1)) == {"image": "i", "registry_id": "r"}
    with pytest.raises(errors.RemoteProtocolError, match="which digest"):
        call.read(ok({}))
    with pytest.raises(errors.ResourceNotFoundError):
        call.read(ok({}, 404))
