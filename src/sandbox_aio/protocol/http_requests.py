"""The control plane's requests as data (wire protocol, sections 1.5 to 1.10).

`ControlPlane(url)` has one method for each request; each returns an `HttpCall` that a driver sends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import attrs

from ..errors import RemoteProtocolError
from ..models import ResourceStatus, RunConfig, SandboxRecord, Snapshot
from .endpoint import quote_name, quote_snapshot
from .http_call import HttpCall, HttpResponse, Resend, json_body, json_object
from .http_errors import create_error, list_error, resource_error, update_error

__all__ = ["BoxOptions", "ControlPlane", "box_changes", "run_config_payload"]

_CONTROL_TIMEOUT = 10.0
_CREATE_MARGIN = 30.0
"""Seconds that a creation may take on top of what the server was told to wait."""


@attrs.frozen(kw_only=True)
class BoxOptions:
    """What a new sandbox should be; None leaves it to the server. `payload` checks and renders it (section 1.7)."""

    snapshot_id: str | None = None
    snapshot: str | None = None
    snapshot_name: str | None = None
    idle_ttl_seconds: int | None = None
    delete_after_stop_seconds: int | None = None
    persistent: bool | None = None
    preserve_memory_on_stop: bool | None = None
    restore_memory: bool | None = None
    vcpus: float | None = None
    mem_bytes: int | None = None
    fs_capacity_bytes: int | None = None
    labels: Mapping[str, str] | None = None
    mount_config: Mapping[str, Any] | None = None
    proxy_config: Mapping[str, Any] | None = None
    run_config: RunConfig | Mapping[str, Any] | None = None
    access_delegation: Mapping[str, Any] | None = None

    def payload(self) -> dict[str, Any]:
        """The members of the request that these options stand for.

        Raises:
            ValueError: Two snapshots are named, a lifetime is not a multiple of 60 seconds, or the access delegation
                is not explicit or is empty.
        """
        if self.snapshot_id is not None and (self.snapshot is not None or self.snapshot_name is not None):
            raise ValueError("name the snapshot once: by snapshot_id, or by snapshot")
        _check_lifetimes(self.idle_ttl_seconds, self.delete_after_stop_seconds)
        delegation = self.access_delegation
        if delegation is not None and (delegation.get("mode") != "EXPLICIT" or not delegation.get("permissions")):
            raise ValueError('access_delegation must be {"mode": "EXPLICIT", "permissions": [...]} with a permission')
        payload = {field.name: getattr(self, field.name) for field in attrs.fields(BoxOptions)}
        if self.snapshot is not None:
            payload["snapshot_name"] = None
        if self.run_config is not None:
            payload["run_config"] = run_config_payload(self.run_config)
        return {name: value for name, value in payload.items() if value is not None}


@attrs.frozen
class ControlPlane:
    """Builds the requests of one control plane."""

    url: str
    """Without a trailing slash; see `control_plane_url`."""
    timeout: float = _CONTROL_TIMEOUT
    """Seconds for a request that does not wait for a sandbox."""

    def create_box(
        self, options: BoxOptions, *, name: str, name_is_unique: bool, wait_for_ready: bool, timeout: float
    ) -> HttpCall[SandboxRecord]:
        """`POST /boxes`.

        A second attempt cannot make a second sandbox, since the name is always the client's choice. With a name that
        nobody else can have chosen (`name_is_unique`) it is sent again also after an unknown outcome; a 409 then tells
        that the first attempt worked.

        Args:
            timeout: How long the server may wait for the sandbox to be ready, in seconds.
        """
        quote_name(name)
        payload: dict[str, Any] = {"wait_for_ready": wait_for_ready}
        if wait_for_ready:
            payload["timeout"] = math.ceil(timeout)
        payload |= options.payload() | {"name": name}

        def read(response: HttpResponse) -> SandboxRecord:
            if not response.success:
                raise create_error(response)
            return SandboxRecord.from_dict(json_object(response))

        return HttpCall(
            method="POST",
            url=f"{self.url}/boxes",
            read=read,
            timeout=(timeout if wait_for_ready else 0) + _CREATE_MARGIN,
            resend=Resend.ALWAYS if name_is_unique else Resend.IF_REFUSED,
            **json_body(payload),
        )

    def get_box(self, name: str) -> HttpCall[SandboxRecord]:
        """`GET /boxes/{name}`."""
        return HttpCall(method="GET", url=self._box(name), read=_read_box, timeout=self.timeout)

    def list_boxes(self) -> HttpCall[list[SandboxRecord]]:
        """`GET /boxes`: the first page, as the service cuts it."""

        def read(response: HttpResponse) -> list[SandboxRecord]:
            return [SandboxRecord.from_dict(item) for item in _read_page(response, "sandboxes")]

        return HttpCall(method="GET", url=f"{self.url}/boxes", read=read, timeout=self.timeout)

    def update_box(self, name: str, changes: Mapping[str, Any]) -> HttpCall[SandboxRecord]:
        """`PATCH /boxes/{name}` with the members to change; see `box_changes`."""

        def read(response: HttpResponse) -> SandboxRecord:
            if not response.success:
                raise update_error(response, proxy_config="proxy_config" in changes)
            return SandboxRecord.from_dict(json_object(response))

        return HttpCall(
            method="PATCH",
            url=self._box(name),
            read=read,
            timeout=self.timeout,
            resend=Resend.IF_REFUSED if "name" in changes else Resend.ALWAYS,
            **json_body(changes),
        )

    def delete_box(self, name: str) -> HttpCall[None]:
        """`DELETE /boxes/{name}`. A 404 after an attempt whose outcome is unknown is a success."""

        def read(response: HttpResponse) -> None:
            if not response.success and not (response.status == 404 and response.sent_before):
                raise resource_error(response, "sandbox")

        return HttpCall(method="DELETE", url=self._box(name), read=read, timeout=self.timeout)

    def box_status(self, name: str) -> HttpCall[ResourceStatus]:
        """`GET /boxes/{name}/status`."""

        def read(response: HttpResponse) -> ResourceStatus:
            if not response.success:
                raise resource_error(response, "sandbox")
            return ResourceStatus.from_dict(json_object(response))

        return HttpCall(method="GET", url=f"{self._box(name)}/status", read=read, timeout=self.timeout)

    def start_box(self, name: str) -> HttpCall[None]:
        """`POST /boxes/{name}/start`. It returns before the sandbox is ready."""
        return self._lifecycle(name, "start")

    def stop_box(self, name: str) -> HttpCall[None]:
        """`POST /boxes/{name}/stop`."""
        return self._lifecycle(name, "stop")

    def get_snapshot(self, reference: str) -> HttpCall[Snapshot]:
        """`GET /snapshots/{reference}`: a UUID, `name:tag`, or `name`."""

        def read(response: HttpResponse) -> Snapshot:
            if not response.success:
                raise resource_error(response, "snapshot")
            return Snapshot.from_dict(json_object(response))

        url = f"{self.url}/snapshots/{quote_snapshot(reference)}"
        return HttpCall(method="GET", url=url, read=read, timeout=self.timeout)

    def list_snapshots(
        self, *, name_contains: str | None = None, limit: int | None = None, offset: int | None = None
    ) -> HttpCall[list[Snapshot]]:
        """`GET /snapshots`: exactly one page."""
        chosen = {"name_contains": name_contains, "limit": limit, "offset": offset}
        query = urlencode({name: value for name, value in chosen.items() if value is not None})

        def read(response: HttpResponse) -> list[Snapshot]:
            return [Snapshot.from_dict(item) for item in _read_page(response, "snapshots")]

        url = f"{self.url}/snapshots?{query}" if query else f"{self.url}/snapshots"
        return HttpCall(method="GET", url=url, read=read, timeout=self.timeout)

    def _box(self, name: str) -> str:
        return f"{self.url}/boxes/{quote_name(name)}"

    def _lifecycle(self, name: str, verb: str) -> HttpCall[None]:
        def read(response: HttpResponse) -> None:
            if not response.success:
                raise resource_error(response, "sandbox")

        return HttpCall(
            method="POST",
            url=f"{self._box(name)}/{verb}",
            read=read,
            timeout=max(self.timeout, 30.0),
            **json_body({}),
        )


def box_changes(
    *,
    new_name: str | None,
    idle_ttl_seconds: int | None,
    delete_after_stop_seconds: int | None,
    proxy_config: Mapping[str, Any] | None,
    run_config: RunConfig | Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The members of `PATCH /boxes/{name}`; None leaves a member as it is (section 1.8).

    Raises:
        ValueError: The new name is empty, or a lifetime is not a multiple of 60 seconds.
    """
    if new_name is not None:
        quote_name(new_name)
    _check_lifetimes(idle_ttl_seconds, delete_after_stop_seconds)
    changes = {
        "name": new_name,
        "idle_ttl_seconds": idle_ttl_seconds,
        "delete_after_stop_seconds": delete_after_stop_seconds,
        "proxy_config": proxy_config,
        "run_config": None if run_config is None else run_config_payload(run_config),
    }
    return {name: value for name, value in changes.items() if value is not None}


def run_config_payload(value: RunConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a `run_config` that the caller gave in either form."""
    return value.to_payload() if isinstance(value, RunConfig) else dict(value)


def _check_lifetimes(idle_ttl_seconds: int | None, delete_after_stop_seconds: int | None) -> None:
    for name, value in (
        ("idle_ttl_seconds", idle_ttl_seconds),
        ("delete_after_stop_seconds", delete_after_stop_seconds),
    ):
        if value is not None and (value < 0 or value % 60):
            raise ValueError(f"{name} must be 0 or a positive multiple of 60, not {value!r}")


def _read_box(response: HttpResponse) -> SandboxRecord:
    if not response.success:
        raise resource_error(response, "sandbox")
    return SandboxRecord.from_dict(json_object(response))


def _read_page(response: HttpResponse, member: str) -> list[Mapping[str, Any]]:
    if not response.success:
        raise list_error(response)
    page = json_object(response).get(member)
    if page is None:
        return []
    if not isinstance(page, list):
        raise RemoteProtocolError(f"the server answered with {page!r:.80} where a list of {member} was expected")
    return page
