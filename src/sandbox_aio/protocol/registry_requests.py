"""Requests about image registries, whose credentials a snapshot may be made with (wire protocol, section 1.11)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

import attrs

from ..errors import ResourceAlreadyExistsError, ResourceNameConflictError, SandboxClientError
from ..models import Registry, RegistryPage
from .endpoint import quote_name
from .http_call import HttpCall, HttpResponse, Resend, json_body, json_object
from .http_errors import ErrorBody, list_error, resource_error

if TYPE_CHECKING:
    from .http_requests import ControlPlane

__all__ = ["RegistryFilter", "RegistryWish", "create_registry", "delete_registry", "get_registry", "update_registry"]


@attrs.frozen(kw_only=True)
class RegistryWish:
    """What a registry should be; None leaves a member to the service, or as it is."""

    name: str | None = None
    url: str | None = None
    auth_type: str | None = None
    """`DOCKER_CONFIG`: user name and password. `AWS_ROLE`: a role that the service assumes."""
    aws_role_arn: str | None = None
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)

    def payload(self) -> dict[str, str]:
        """The members that are chosen."""
        return {name: value for name, value in attrs.asdict(self).items() if value is not None}


@attrs.frozen(kw_only=True)
class RegistryFilter:
    """Which registries to list; None leaves it to the service."""

    name_contains: str | None = None
    page_size: int | None = None
    cursor: str | None = None
    limit: int | None = None
    offset: int | None = None

    def call(self, control: ControlPlane) -> HttpCall[RegistryPage]:
        """`GET /registries`: exactly one page."""

        def read(response: HttpResponse) -> RegistryPage:
            if not response.success:
                raise list_error(response)
            return RegistryPage.from_dict(json_object(response))

        query = urlencode({name: value for name, value in attrs.asdict(self).items() if value is not None})
        url = f"{control.url}/registries?{query}" if query else f"{control.url}/registries"
        return HttpCall(method="GET", url=url, read=read, timeout=control.timeout)


def create_registry(control: ControlPlane, wish: RegistryWish) -> HttpCall[Registry]:
    """`POST /registries`.

    Raises:
        ValueError: Name or URL are missing.
    """
    if not wish.url:
        raise ValueError("a registry needs a url, such as registry.example.com")
    quote_name(wish.name or "", "registry")

    def read(response: HttpResponse) -> Registry:
        if response.status == 409:
            raise ResourceAlreadyExistsError(ErrorBody.of(response).message, "registry")
        return _read(response)

    return HttpCall(
        method="POST",
        url=f"{control.url}/registries",
        read=read,
        timeout=control.timeout,
        resend=Resend.IF_REFUSED,
        **json_body(wish.payload()),
    )


def get_registry(control: ControlPlane, name: str) -> HttpCall[Registry]:
    """`GET /registries/{name}`."""
    return HttpCall(method="GET", url=_registry(control, name), read=_read, timeout=control.timeout)


def update_registry(control: ControlPlane, name: str, changes: RegistryWish) -> HttpCall[Registry]:
    """`PATCH /registries/{name}` with the members to change.

    Raises:
        ValueError: The new name is empty.
    """
    if changes.name is not None:
        quote_name(changes.name, "registry")

    def read(response: HttpResponse) -> Registry:
        if response.status == 409:
            raise ResourceNameConflictError(ErrorBody.of(response).message, "registry")
        return _read(response)

    return HttpCall(
        method="PATCH",
        url=_registry(control, name),
        read=read,
        timeout=control.timeout,
        resend=Resend.ALWAYS if changes.name is None else Resend.IF_REFUSED,
        **json_body(changes.payload()),
    )


def delete_registry(control: ControlPlane, name: str) -> HttpCall[None]:
    """`DELETE /registries/{name}`. A 404 after an attempt whose outcome is unknown is a success."""

    def read(response: HttpResponse) -> None:
        if not response.success and not (response.status == 404 and response.sent_before):
            raise _error(response)

    return HttpCall(method="DELETE", url=_registry(control, name), read=read, timeout=control.timeout)


def _registry(control: ControlPlane, name: str) -> str:
    return f"{control.url}/registries/{quote_name(name, 'registry')}"


def _read(response: HttpResponse) -> Registry:
    if not response.success:
        raise _error(response)
    return Registry.from_dict(json_object(response))


def _error(response: HttpResponse) -> SandboxClientError:
    return resource_error(response, "registry")
