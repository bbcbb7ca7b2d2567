"""Requests for service URLs and download links, and what follows each attempt of a request to a service."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_aio import errors
from sandbox_aio.models import DownloadURL, ServiceLoginURL
from sandbox_aio.protocol.http_call import HttpCall, HttpResponse
from sandbox_aio.protocol.http_requests import ControlPlane
from sandbox_aio.protocol.http_retry import Failure
from sandbox_aio.protocol.service_requests import (
    DownloadWish,
    ServiceAttempts,
    ServiceURLRecord,
    ServiceWish,
    service_target,
    websocket_target,
)

CONTROL = ControlPlane("http://h/api/v2/sandboxes", 10)
MADE: dict[str, Any] = {
    "browser_url": "http://b",
    "service_url": "http://s/",
    "token": "t",
    "expires_at": "2026-01-01T00:00:00Z",
}


def ok(value: object) -> HttpResponse:
    return HttpResponse(status=200, body=json.dumps(value).encode())


def refusal(status: int, kind: str = "Error", **headers: str) -> HttpResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status=status, headers=named, body=json.dumps({"detail": {"error": kind}}).encode())


def body(call: HttpCall[Any]) -> Any:
    return json.loads(call.body or b"null")


def test_a_wish_for_a_token() -> None:
    call = ServiceWish(port=8000).token_call(CONTROL, "a box")
    assert (call.method, call.url) == ("POST", "http://h/api/v2/sandboxes/boxes/a%20box/service-url")
    assert body(call) == {"port": 8000, "expires_in_seconds": 600}
    assert call.read(ok(MADE)) == ServiceURLRecord(**MADE)
    wish = ServiceWish(port=1, expires_in_seconds=5, embed_origins=("https://a.example",))
    call = wish.token_call(CONTROL, "box")
    assert body(call) == {"port": 1, "expires_in_seconds": 5, "embed_origins": ["https://a.example"]}
    record = call.read(ok({**MADE, "embed_url": "http://e", "embed_origins": ["https://a.example"]}))
    assert (record.embed_url, record.embed_origins) == ("http://e", ("https://a.example",))
    with pytest.raises(errors.ResourceNotFoundError):
        call.read(refusal(404))


def test_no_credential_is_in_a_repr() -> None:
    record = ServiceURLRecord(
        browser_url="http://b/?secret",
        service_url="http://s/",
        token="secret",
        expires_at="",
        embed_url="#secret",
    )
    assert "secret" not in repr(record)
    assert "secret" not in repr(DownloadURL("http://h", "secret"))


def test_a_wish_for_a_login() -> None:
    call = ServiceWish(port=8000, access="workspace").login_call(CONTROL, "box")
    assert body(call) == {"port": 8000, "access": "workspace"}
    assert call.read(ok({"service_url": "http://s", "access": "workspace"})) == ServiceLoginURL("http://s", "workspace")
    both = {"browser_url": "http://b", "service_url": "http://s", "access": "restricted", "embed_origins": ["x"]}
    assert call.read(ok(both)) == ServiceLoginURL("http://b", "restricted", ["x"])


@pytest.mark.parametrize(
    "changes",
    [{"token": None}, {"browser_url": 1}, {"service_url": ""}, {"expires_at": []}, {"embed_url": 1},
     {"embed_origins": "x"}],
)  # fmt: skip
def test_what_is_not_a_service_url(changes: dict[str, Any]) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        ServiceURLRecord.from_dict({**MADE, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"port": 0}, {"port": 65536}, {"expires_in_seconds": 0}, {"expires_in_seconds": 86401}, {"access": "off"},
     {"embed_origins": "https://a.example"}],
)  # fmt: skip
def test_wishes_that_no_server_grants(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"port|expires_in_seconds|access|embed_origins"):
        ServiceWish(**{"port": 80, **changes})


def test_when_a_token_is_renewed() -> None:
    margins = [ServiceWish(port=80, expires_in_seconds=seconds).margin for seconds in (1, 60, 120, 600)]
    assert margins == [0.25, 15, 30, 30]


def test_a_wish_for_a_link() -> None:
    call = DownloadWish(path="/a b").call(CONTROL, "box")
    assert (call.method, call.url) == ("POST", "http://h/api/v2/sandboxes/boxes/box/download-url")
    assert body(call) == {"path": "/a b"}
    made = {"download_url": "http://h/dl/t", "token": "t"}
    assert call.read(ok({**made, "expires_at": None})) == DownloadURL("http://h/dl/t", "t")
    full = DownloadWish(path="a", expires_in_seconds=1, content_type="text/html", content_disposition="inline")
    assert body(full.call(CONTROL, "box")) == {
        "path": "a",
        "expires_in_seconds": 1,
        "content_type": "text/html",
        "content_disposition": "inline",
    }
    with pytest.raises(errors.ValidationError):
        call.read(refusal(422))
    for wish in (DownloadWish(path=""), DownloadWish(path="a", expires_in_seconds=0)):
        with pytest.raises(ValueError, match=r"path|expires_in_seconds"):
            wish.call(CONTROL, "box")


def test_a_refused_token_is_replaced_once() -> None:
    attempts = ServiceAttempts("POST", replayable=True, max_retries=3)
    assert not attempts.wants_new_token(403)
    assert attempts.wants_new_token(401)
    assert not attempts.wants_new_token(401)
    assert not ServiceAttempts("GET", replayable=False, max_retries=3).wants_new_token(401)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_what_may_pass_is_asked_again(status: int) -> None:
    for method, replayable, again in (
        ("get", True, True),
        ("PUT", True, True),
        ("PUT", False, False),
        ("POST", True, False),
        ("PATCH", True, False),
    ):
        attempts = ServiceAttempts(method, replayable=replayable, max_retries=2)
        assert attempts.may_pass(status) is again
        assert (attempts.after_response(refusal(status), jitter=1) is not None) is again
    attempts = ServiceAttempts("GET", replayable=True, max_retries=2)
    waits = [attempts.after_response(refusal(status), jitter=1) for _ in range(3)]
    assert waits == [0.5, 1.0, None]
    attempts = ServiceAttempts("GET", replayable=True, max_retries=2)
    assert attempts.after_response(refusal(status, retry_after="7"), jitter=0) == 7
    assert attempts.after_response(refusal(status, "ConnectionRefused"), jitter=0) is None


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
def test_other_answers_are_taken(status: int) -> None:
    attempts = ServiceAttempts("GET", replayable=True, max_retries=3)
    assert not attempts.may_pass(status)
    assert attempts.after_response(refusal(status), jitter=0) is None


def test_attempts_without_an_answer() -> None:
    for method, replayable, again in (("GET", True, True), ("GET", False, False), ("POST", True, False)):
        attempts = ServiceAttempts(method, replayable=replayable, max_retries=3)
        assert attempts.after_failure(Failure.NOT_SENT, jitter=0) is not None
        assert (attempts.after_failure(Failure.INTERRUPTED, jitter=0) is not None) is again
        assert attempts.after_failure(Failure.TIMED_OUT, jitter=0) is None


@pytest.mark.parametrize("base", ["http://h/svc/x/80", "http://h/svc/x/80/"])
@pytest.mark.parametrize("path", ["a/b?c=d", "/a/b?c=d", "//a/b?c=d"])
def test_paths_are_below_the_service(base: str, path: str) -> None:
    assert service_target(base, path) == "http://h/svc/x/80/a/b?c=d"


def test_paths_of_websockets() -> None:
    assert websocket_target("http://h/svc/x/80/", "ws?a=b") == "/svc/x/80/ws?a=b"
    assert websocket_target("https://h", "/") == "/"
    for path in ("..", "/a/../b", "%2e%2E/x", "./a"):
        with pytest.raises(ValueError, match="leads out"):
            websocket_target("http://h/svc/x/80/", path)
