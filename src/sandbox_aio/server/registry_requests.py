"""What the requests about registries accept. Wire protocol, section 1.11."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from .creation import check_fields, is_uuid, structure_body
from .errors import ApiError, Detail, InvalidFieldsError
from .registries import registry_host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["RegistryChange", "parse_create_registry", "parse_update_registry"]

MAX_NAME: Final = 255
MAX_URL: Final = 2048
MAX_SECRET: Final = 16 * 1024
"""Characters of a user name or a password; some clouds' tokens have thousands."""


@attrs.frozen(kw_only=True)
class RegistryChange:
    """The body as it was sent; None means absent."""

    name: str | None = None
    url: str | None = None
    auth_type: str | None = None
    aws_role_arn: Any = None
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)


def parse_create_registry(body: bytes) -> RegistryChange:
    """Raises ApiError 400 for what is not a JSON object, 501 for AWS roles, and InvalidFieldsError."""
    request = parse_update_registry(body)
    missing = [name for name in ("name", "url") if getattr(request, name) is None]
    if missing:
        raise InvalidFieldsError([Detail(name, f"{name}: is required") for name in missing])
    return request


def parse_update_registry(body: bytes) -> RegistryChange:
    """The same for a change, of which every member may be absent."""
    _, request = structure_body(body, RegistryChange)
    check_fields(request, _CHECKS)
    if request.auth_type == "AWS_ROLE" or request.aws_role_arn:
        message = "auth_type: this server assumes no AWS roles; use DOCKER_CONFIG with a user name and a password"
        raise ApiError(501, "NotImplemented", message)
    return request


def _name(request: RegistryChange) -> str | None:
    name = request.name
    if name is None:
        return None
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        return f"must be 1 to {MAX_NAME} printable characters"
    return "must not look like a UUID" if is_uuid(name) else None


def _url(request: RegistryChange) -> str | None:
    if request.url is None:
        return None
    if len(request.url) > MAX_URL:
        return f"must have at most {MAX_URL} characters"
    try:
        registry_host(request.url)
    except ValueError as error:
        return str(error)
    return None


def _auth_type(request: RegistryChange) -> str | None:
    return None if request.auth_type in (None, "DOCKER_CONFIG", "AWS_ROLE") else "must be DOCKER_CONFIG"


def _secret(field: str) -> Callable[[RegistryChange], str | None]:
    def check(request: RegistryChange) -> str | None:
        value: str = getattr(request, field) or ""
        if len(value) > MAX_SECRET or any(ord(character) < 32 or ord(character) == 127 for character in value):
            return f"must have at most {MAX_SECRET} characters and no control characters"
        return "must have no ':'" if field == "username" and ":" in value else None

    return check


_CHECKS: Final[Sequence[tuple[str, Callable[[RegistryChange], str | None]]]] = (
    ("name", _name),
    ("url", _url),
    ("auth_type", _auth_type),
    ("username", _secret("username")),
    ("password", _secret("password")),
)
