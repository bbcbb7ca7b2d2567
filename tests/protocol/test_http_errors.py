"""Every status and body is one typed error, by the tables of the wire protocol, sections 2.2 and 2.3."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio import errors
from sandbox_aio.protocol.http_call import HttpResponse
from sandbox_aio.protocol.http_errors import (
    ErrorBody,
    create_error,
    execute_error,
    file_error,
    list_error,
    resource_error,
    update_error,
    write_error,
)

Table = Callable[[HttpResponse], errors.SandboxClientError]


def answer(status: int, error: str | None = None, message: str = "text", **headers: str) -> HttpResponse:
    """The canonical body."""
    detail = {"error": error, "message": message}
    body = json.dumps({"detail": detail}).encode()
    return HttpResponse(status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}, body=body)


def box(response: HttpResponse) -> errors.SandboxClientError:
    return resource_error(response, "sandbox")


def snapshot(response: HttpResponse) -> errors.SandboxClientError:
    return resource_error(response, "snapshot")


def update(response: HttpResponse) -> errors.SandboxClientError:
    return update_error(response, proxy_config=False)


def update_proxy(response: HttpResponse) -> errors.SandboxClientError:
    return update_error(response, proxy_config=True)


def read(response: HttpResponse) -> errors.SandboxClientError:
    return file_error(response, "/a", "box")


def execute(response: HttpResponse) -> errors.SandboxClientError:
    return execute_error(response, 7)


def value_error(*loc: str) -> HttpResponse:
    detail = [{"loc": list(loc), "msg": "bad", "type": "value_error"}, {"msg": "worse", "type": "x"}]
    return HttpResponse(status=422, body=json.dumps({"detail": detail}).encode())


ROWS: list[tuple[Table, HttpResponse, type[errors.SandboxClientError], dict[str, Any]]] = [
    (create_error, answer(408), errors.ResourceTimeoutError, {"resource_type": "sandbox"}),
    (create_error, answer(409), errors.ResourceAlreadyExistsError, {"resource_type": "sandbox"}),
    (create_error, value_error("body", "name"), errors.ValidationError, {"field": "name"}),
    (create_error, value_error(), errors.ValidationError, {"field": None}),
    (create_error, answer(422, "ImagePull"), errors.ResourceCreationError, {"error_type": "ImagePull"}),
    (create_error, answer(429, None, "sandbox count"), errors.QuotaExceededError, {"quota_type": "sandbox_count"}),
    (create_error, answer(503), errors.ResourceCreationError, {"error_type": "Unschedulable"}),
    (create_error, answer(503, "Full"), errors.ResourceCreationError, {"error_type": "Full"}),
    (create_error, answer(400, "SnapshotNotFound"), errors.SandboxClientError, {}),
    (create_error, answer(504), errors.SandboxClientError, {}),
    (create_error, answer(404), errors.ResourceNotFoundError, {"resource_type": None}),
    (box, answer(404), errors.ResourceNotFoundError, {"resource_type": "sandbox"}),
    (snapshot, answer(404), errors.ResourceNotFoundError, {"resource_type": "snapshot"}),
    (list_error, answer(404), errors.SandboxAPIError, {}),
    (list_error, answer(401), errors.SandboxAuthenticationError, {}),
    (update, answer(409), errors.ResourceNameConflictError, {"resource_type": "sandbox"}),
    (update, answer(404), errors.ResourceNotFoundError, {"resource_type": "sandbox"}),
    (update, answer(400, "InvalidRequest"), errors.SandboxClientError, {}),
    (update_proxy, answer(400, "InvalidRequest"), errors.SandboxNotReadyError, {}),
    (update_proxy, answer(400, "Other"), errors.SandboxClientError, {}),
    (box, answer(401), errors.SandboxAuthenticationError, {}),
    (box, answer(403), errors.SandboxAuthenticationError, {}),
    (box, answer(422, "Bad"), errors.ValidationError, {"field": None, "details": [], "error_type": "Bad"}),
    (box, answer(429, None, "CPU quota"), errors.QuotaExceededError, {"quota_type": "cpu"}),
    (box, answer(429, None, "too much memory"), errors.QuotaExceededError, {"quota_type": "memory"}),
    (box, answer(429, None, "storage"), errors.QuotaExceededError, {"quota_type": "storage"}),
    (box, answer(429, None, "Sandbox LIMIT"), errors.QuotaExceededError, {"quota_type": "sandbox_count"}),
    (box, answer(429, None, "slow down"), errors.QuotaExceededError, {"quota_type": None}),
    (box, answer(502, "ConnectionError"), errors.SandboxConnectionError, {}),
    (box, answer(502), errors.SandboxClientError, {}),
    (box, answer(500), errors.SandboxAPIError, {}),
    (box, answer(400), errors.SandboxClientError, {}),
    (box, answer(409), errors.SandboxClientError, {}),
    (box, answer(302, location="/x"), errors.SandboxClientError, {}),
    (read, answer(404), errors.ResourceNotFoundError, {"resource_type": "file"}),
    (read, answer(416, content_range="bytes */9"), errors.SandboxOperationError, {"operation": None}),
    (read, answer(500, "ReadError"), errors.SandboxOperationError, {"operation": "read", "error_type": "ReadError"}),
    (write_error, answer(400, "WriteError"), errors.SandboxOperationError, {"operation": "write"}),
    (write_error, answer(404, "CommandError"), errors.SandboxOperationError, {"operation": "command"}),
    (write_error, answer(403), errors.SandboxOperationError, {"operation": None, "error_type": "PermissionDenied"}),
    (write_error, answer(502, "ConnectionError"), errors.SandboxConnectionError, {}),
    (write_error, answer(400, "NotReady"), errors.SandboxNotReadyError, {}),
    (write_error, answer(503, "ServiceUnavailable"), errors.SandboxNotReadyError, {}),
    (write_error, answer(404), errors.ResourceNotFoundError, {"resource_type": "file"}),
    (write_error, answer(400, "FileNotFound"), errors.ResourceNotFoundError, {"resource_type": "file"}),
    (write_error, answer(401), errors.SandboxAuthenticationError, {}),
    (write_error, answer(429), errors.SandboxClientError, {}),
    (execute, answer(400, "CommandTimeout"), errors.CommandTimeoutError, {"timeout": 7}),
    (execute, answer(404), errors.ResourceNotFoundError, {"resource_type": "sandbox"}),
    (execute, answer(404, "FileNotFound"), errors.ResourceNotFoundError, {"resource_type": "file"}),
    (execute, answer(400, "CommandError"), errors.SandboxOperationError, {"operation": "command"}),
]


@pytest.mark.parametrize(("table", "response", "kind", "attributes"), ROWS)
def test_the_first_row_that_matches_wins(
    table: Table, response: HttpResponse, kind: type[errors.SandboxClientError], attributes: dict[str, Any]
) -> None:
    error = table(response)
    assert type(error) is kind
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert str(error)


def test_messages_help() -> None:
    assert "set LANGSMITH_API_KEY" in str(box(answer(401)))
    assert "redirects are not followed" in str(box(answer(302, location="/x")))
    assert str(box(answer(302))) == "text"
    assert "check that the endpoint" in str(list_error(answer(404)))
    assert str(read(answer(404, None, "gone"))) == "there is no '/a' in sandbox 'box': gone"
    assert str(read(HttpResponse(status=404))) == "there is no '/a' in sandbox 'box'"
    assert "bytes */9" in str(read(answer(416, content_range="bytes */9")))
    assert "unknown" in str(read(HttpResponse(status=416)))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"detail": {"error": "E", "message": "m"}}, "m"),
        ({"detail": {"error": "E", "message": "m", "error_id": "7"}}, "m (error_id=7)"),
        ({"detail": {"error": "E", "message": "m", "error_id": ""}}, "m"),
        ({"detail": {"error": "E"}}, "the server answered 418 (I'm a Teapot) and gave no reason but 'E'"),
        ({"detail": {}}, "the server answered 418 (I'm a Teapot) and gave no reason"),
        ({"detail": [{"msg": "a"}, {"msg": "b"}, 3, {"msg": ""}]}, "a; b"),
        ({"detail": []}, "the server answered 418 (I'm a Teapot) and gave no reason"),
        ({"detail": "text"}, "text"),
        ({"detail": ""}, "the server answered 418 (I'm a Teapot) and gave no reason"),
        ({"detail": 3}, "the server answered 418 (I'm a Teapot) and gave no reason"),
        (["detail"], "the server answered 418 (I'm a Teapot) and gave no reason"),
    ],
)
def test_all_forms_of_bodies_are_understood(body: object, message: str) -> None:
    assert ErrorBody.of(HttpResponse(status=418, body=json.dumps(body).encode())).message == message


def test_a_status_without_a_name_and_a_body_without_sense() -> None:
    assert (
        ErrorBody.of(HttpResponse(status=799, body=b"<html>")).message == "the server answered 799 and gave no reason"
    )
    assert ErrorBody.of(HttpResponse(status=799, body=b"[" * 100_000)).error is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["loc", "msg", "type"]), inner),
    max_leaves=8,
)
details = st.dictionaries(st.sampled_from(["error", "message", "error_id"]), json_values) | json_values
bodies = st.fixed_dictionaries({"detail": details}).map(json.dumps).map(str.encode) | st.binary()


@given(st.integers(100, 999), bodies, st.sampled_from([row[0] for row in ROWS]))
def test_any_status_and_any_body_give_a_typed_error(status: int, body: bytes, table: Table) -> None:
    error = table(HttpResponse(status=status, body=body))
    assert isinstance(error, errors.SandboxClientError)
    assert str(error)
