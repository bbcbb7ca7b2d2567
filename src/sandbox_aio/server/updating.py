"""What `PATCH /boxes/{name}` accepts. Wire protocol, section 1.8."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs

from .creation import MAX_DELETE_AFTER_STOP
from .egress.config import parse_proxy_config
from .errors import ApiError, Detail, InvalidFieldsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .sandbox import Settings

__all__ = ["parse_update"]

NOT_OFFERED: Final = (
    "name",
    "run_config",
    "vcpus",
    "cpu_millicores",
    "mem_bytes",
    "fs_capacity_bytes",
    "tag_value_ids",
)
"""What the protocol lets be changed and this server does not."""
DURATIONS: Final[dict[str, float]] = {
    "idle_ttl_seconds": float("inf"),
    "delete_after_stop_seconds": MAX_DELETE_AFTER_STOP,
}


def parse_update(body: bytes) -> Callable[[Settings], Settings]:
    """What to make of the settings. Members that are absent or null change nothing.

    Raises ApiError 400 for what is not a JSON object, 501 for a member that is not offered, InvalidFieldsError for one
    that is wrong or unknown; what is returned raises InvalidFieldsError for wrong `proxy_config`.
    """
    try:
        document = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "InvalidRequest", f"the request body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ApiError(400, "InvalidRequest", "the request body is not a JSON object")
    members = {name: value for name, value in document.items() if value is not None}
    for name in NOT_OFFERED:
        if name in members:
            raise ApiError(501, "NotImplemented", f"this server does not change {name} of a sandbox")
    unknown = sorted(members.keys() - DURATIONS.keys() - {"proxy_config"})
    details = [Detail(name, f"{name}: is not a field that this server knows") for name in unknown]
    durations: dict[str, Any] = {}
    for name, most in DURATIONS.items():
        if name not in members:
            continue
        value = durations[name] = members[name]
        if type(value) is not int or not 0 <= value <= most:
            details.append(Detail(name, f"{name}: must be 0 to {most:,.15g} seconds"))
    if details:
        raise InvalidFieldsError(details)

    def change(settings: Settings) -> Settings:
        changed = attrs.evolve(settings, **durations)
        if "proxy_config" not in members:
            return changed
        rules = parse_proxy_config(members["proxy_config"], before=settings.proxy_config)
        return attrs.evolve(changed, proxy_config=rules)

    return change
