"""Requests about snapshots that make, name or remove them (wire protocol, section 1.10).

`SnapshotWish` and `CaptureWish` render themselves. `import_call`, `tag_call` and `push_call` are for services that
offer more than the protocol has, such as this project's server; others answer 404 or 405.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import attrs

from ..errors import RemoteProtocolError
from ..models import RunConfig, Snapshot, SnapshotTag
from .endpoint import quote_name, quote_snapshot
from .http_call import HttpCall, HttpResponse, Resend, json_body, json_object
from .http_errors import resource_error
from .http_requests import run_config_payload

if TYPE_CHECKING:
    from .http_requests import ControlPlane

__all__ = ["CaptureWish", "SnapshotWish", "delete_call", "import_call", "push_call", "tag_call", "tags_call"]

_CREATE_TIMEOUT = 30.0
"""Seconds that the answer may take, which comes before the snapshot is ready, but not always at once."""


@attrs.frozen(kw_only=True)
class SnapshotWish:
    """A snapshot of an image; None leaves it to the service."""

    name: str
    docker_image: str
    fs_capacity_bytes: int
    tag: str | None = None
    registry_id: str | None = None
    run_config: RunConfig | Mapping[str, Any] | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what no service takes.

        Raises:
            ValueError: The name or the image is empty, or there is no room for any file.
        """
        quote_name(self.name, "snapshot")
        if not self.docker_image:
            raise ValueError("docker_image is the name of an image, not empty")
        _check_capacity(self.fs_capacity_bytes)

    def call(self, control: ControlPlane) -> HttpCall[Snapshot]:
        """`POST /snapshots`."""
        return _make(control, f"{control.url}/snapshots", _payload(self), "snapshot")


@attrs.frozen(kw_only=True)
class CaptureWish:
    """A snapshot of a sandbox; None leaves it to the service."""

    name: str
    tag: str | None = None
    docker_image: str | None = None
    fs_capacity_bytes: int | None = None
    run_config: RunConfig | Mapping[str, Any] | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what no service takes.

        Raises:
            ValueError: The name is empty, or there is no room for any file.
        """
        quote_name(self.name, "snapshot")
        _check_capacity(self.fs_capacity_bytes)

    def call(self, control: ControlPlane, sandbox_name: str) -> HttpCall[Snapshot]:
        """`POST /boxes/{name}/snapshot`."""
        url = f"{control.url}/boxes/{quote_name(sandbox_name)}/snapshot"
        return _make(control, url, _payload(self), "sandbox")


def delete_call(control: ControlPlane, reference: str) -> HttpCall[None]:
    """`DELETE /snapshots/{reference}`. A 404 after an attempt whose outcome is unknown is a success."""

    def read(response: HttpResponse) -> None:
        if not response.success and not (response.status == 404 and response.sent_before):
            raise resource_error(response, "snapshot")

    return HttpCall(method="DELETE", url=_snapshot(control, reference), read=read, timeout=control.timeout)


def tags_call(control: ControlPlane, name: str) -> HttpCall[list[SnapshotTag]]:
    """`GET /snapshots-by-name/{name}`."""

    def read(response: HttpResponse) -> list[SnapshotTag]:
        if not response.success:
            raise resource_error(response, "snapshot")
        tags = json_object(response).get("tags") or []
        if not isinstance(tags, list):
            raise RemoteProtocolError(f"the server answered with {tags!r:.80} where a list of tags was expected")
        return [SnapshotTag.from_dict(tag) for tag in tags]

    url = f"{control.url}/snapshots-by-name/{quote_name(name, 'snapshot')}"
    return HttpCall(method="GET", url=url, read=read, timeout=control.timeout)


def tag_call(control: ControlPlane, reference: str, tag: str, name: str | None) -> HttpCall[Snapshot]:
    """`POST /snapshots/{reference}/tags`. Sent again it does the same."""
    payload = {"tag": tag} if name is None else {"tag": tag, "name": name}
    call = _make(control, f"{_snapshot(control, reference)}/tags", payload, "snapshot")
    return attrs.evolve(call, resend=Resend.ALWAYS)


def import_call(
    control: ControlPlane, name: str, tag: str | None, fs_capacity_bytes: int | None, timeout: float
) -> HttpCall[Snapshot]:
    """`POST /snapshots/import`, whose body is the archive of an image, which is sent piece by piece.

    `timeout` bounds each silence of the server.

    Raises:
        ValueError: The name is empty, or there is no room for any file.
    """
    quote_name(name, "snapshot")
    _check_capacity(fs_capacity_bytes)
    chosen = {"name": name, "tag": tag, "fs_capacity_bytes": fs_capacity_bytes}
    query = urlencode({name: value for name, value in chosen.items() if value is not None})
    call = _make(control, f"{control.url}/snapshots/import?{query}", {}, "snapshot")
    headers = {"content-type": "application/x-tar"}
    return attrs.evolve(call, body=None, headers=headers, timeout=timeout, unbounded_body=True)


def push_call(
    control: ControlPlane, reference: str, image: str, registry_id: str | None, timeout: float
) -> HttpCall[str]:
    """`POST /snapshots/{reference}/push`: the digest that the image has there. Sent again it does the same."""

    def read(response: HttpResponse) -> str:
        if not response.success:
            raise resource_error(response, "snapshot")
        digest = json_object(response).get("digest")
        if not isinstance(digest, str):
            raise RemoteProtocolError("the server did not say which digest the image has now")
        return digest

    payload = {"image": image} if registry_id is None else {"image": image, "registry_id": registry_id}
    return HttpCall(
        method="POST", url=f"{_snapshot(control, reference)}/push", read=read, timeout=timeout, **json_body(payload)
    )


def _snapshot(control: ControlPlane, reference: str) -> str:
    return f"{control.url}/snapshots/{quote_snapshot(reference)}"


def _check_capacity(value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"fs_capacity_bytes is at least 1, not {value!r}")


def _payload(wish: SnapshotWish | CaptureWish) -> dict[str, Any]:
    payload = {field.name: getattr(wish, field.name) for field in attrs.fields(type(wish))}
    if wish.run_config is not None:
        payload["run_config"] = run_config_payload(wish.run_config)
    return {name: value for name, value in payload.items() if value is not None}


def _make(control: ControlPlane, url: str, payload: Mapping[str, Any], resource: str) -> HttpCall[Snapshot]:
    def read(response: HttpResponse) -> Snapshot:
        if not response.success:
            raise resource_error(response, resource)
        return Snapshot.from_dict(json_object(response))

    return HttpCall(
        method="POST",
        url=url,
        read=read,
        timeout=max(control.timeout, _CREATE_TIMEOUT),
        resend=Resend.IF_REFUSED,
        **json_body(payload),
    )
