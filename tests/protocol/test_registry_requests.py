"""The requests about image registries, and what their answers become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_aio import errors
from sandbox_aio.models import Registry, RegistryPage
from sandbox_aio.protocol.http_call import HttpCall, HttpResponse, Resend
from sandbox_aio.protocol.http_requests import ControlPlane
from sandbox_aio.protocol.registry_requests import (
    RegistryFilter,
    RegistryWish,
    create_registry,
    delete_registry,
    get_registry,
    update_registry,
)

CONTROL = ControlPlane("http://h/v2", 10)
ONE = {"id": "i", "name": "n", "url": "u", "provider": "GHCR"}


def ok(value: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status=status, body=json.dumps(value).encode())


def no(status: int, error: str = "E") -> HttpResponse:
    return ok({"detail": {"error": error, "message": "because"}}, status)


def body(call: HttpCall[Any]) -> dict[str, Any]:
    assert call.body is not None
    sent: dict[str, Any] = json.loads(call.body)
    return sent


def test_a_registry_is_made_with_what_was_chosen() -> None:
    call = create_registry(CONTROL, RegistryWish(name="n", url="u", username="me", password="secret"))
    assert (call.method, call.url, call.resend) == ("POST", "http://h/v2/registries", Resend.IF_REFUSED)
    assert body(call) == {"name": "n", "url": "u", "username": "me", "password": "secret"}
    assert call.read(ok(ONE, 201)) == Registry("i", "n", "u", provider="GHCR")
    with pytest.raises(errors.ResourceAlreadyExistsError, match="because") as taken:
        call.read(no(409))
    assert taken.value.resource_type == "registry"
    with pytest.raises(errors.ValidationError):
        call.read(no(422))


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(RegistryWish(username="secret", password="secret"))


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": None}, {"url": ""}, {"url": None}])
def test_what_no_service_takes_is_not_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"registry"):
        create_registry(CONTROL, RegistryWish(**{"name": "n", "url": "u", **wrong}))


def test_one_is_read_changed_and_deleted_by_name() -> None:
    call = get_registry(CONTROL, "a/b")
    assert (call.method, call.url) == ("GET", "http://h/v2/registries/a%2Fb")
    assert call.read(ok(ONE)).id == "i"
    with pytest.raises(errors.ResourceNotFoundError) as caught:
        call.read(no(404))
    assert caught.value.resource_type == "registry"
    changed = update_registry(CONTROL, "n", RegistryWish(password="p"))
    assert (changed.method, changed.url, changed.resend) == ("PATCH", "http://h/v2/registries/n", Resend.ALWAYS)
    assert body(changed) == {"password": "p"}
    assert changed.read(ok(ONE)).name == "n"
    gone = delete_registry(CONTROL, "n")
    assert gone.method == "DELETE"
    gone.read(HttpResponse(status=204))
    gone.read(HttpResponse(status=404, sent_before=True))
    for response in (no(404), HttpResponse(status=500, sent_before=True)):
        with pytest.raises(errors.SandboxClientError):
            gone.read(response)


def test_a_new_name_may_be_taken() -> None:
    call = update_registry(CONTROL, "n", RegistryWish(name="m"))
    assert (body(call), call.resend) == ({"name": "m"}, Resend.IF_REFUSED)
    with pytest.raises(errors.ResourceNameConflictError, match="because"):
        call.read(no(409))
    with pytest.raises(ValueError, match="registry"):
        update_registry(CONTROL, "n", RegistryWish(name=""))


def test_a_page_is_listed() -> None:
    assert RegistryFilter().call(CONTROL).url == "http://h/v2/registries"
    call = RegistryFilter(name_contains="a b", page_size=3, cursor="c").call(CONTROL)
    assert call.url == "http://h/v2/registries?name_contains=a+b&page_size=3&cursor=c"
    page = call.read(ok({"items": [ONE], "registries": [ONE], "next_cursor": "d", "offset": 1}))
    assert page == RegistryPage([Registry("i", "n", "u", provider="GHCR")], "d", 1)
    assert ([one.name for one in page], len(page), page.registries is page.items) == (["n"], 1, True)
    assert len(call.read(ok({"registries": [ONE]}))) == 1
    assert len(call.read(ok({"registries": None}))) == 0
    with pytest.raises(errors.SandboxAPIError, match="endpoint"):
        call.read(no(404))
    with pytest.raises(errors.RemoteProtocolError, match="items"):
        call.read(ok({"items": 3}))
