"""What `POST /boxes` accepts. Wire protocol, section 1.7.

Everything that the official SDKs send by default is accepted. What this server cannot honour is refused by name:
a sandbox never silently lacks what was asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from .egress.config import NO_RULES, parse_proxy_config
from .errors import ApiError, Detail, InvalidFieldsError
from .sandbox import RunConfig, Settings
from .sandboxes import NewSandbox
from .snapshot import Origin, SnapshotStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .snapshot import Snapshot

__all__ = [
    "CreateRequest",
    "RunConfigBody",
    "check_environment",
    "check_fields",
    "check_labels",
    "check_user",
    "check_work_dir",
    "is_uuid",
    "parse_create",
    "structure_body",
]

T = TypeVar("T")

NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
MAX_LABELS: Final = 128
MAX_LABEL_KEY: Final = 256
MAX_LABEL_VALUE: Final = 4096
RESERVED_LABELS: Final = "com.langchain."
MAX_DELETE_AFTER_STOP: Final = 30 * 24 * 3600
MAX_TIMEOUT: Final = 3600.0
CPU_MILLICORES: Final = range(50, 1_000_001)


@attrs.frozen(kw_only=True)
class RunConfigBody:
    """Wire protocol, section 1.12."""

    user: str | None = None
    work_dir: str | None = None
    env_vars: dict[str, str] | None = None


@attrs.frozen(kw_only=True)
class CreateRequest:
    """The body as it was sent; None means absent."""

    wait_for_ready: bool | None = None
    timeout: float | None = None
    snapshot_id: str | None = None
    snapshot: str | None = None
    snapshot_name: str | None = None
    name: str | None = None
    idle_ttl_seconds: int | None = None
    delete_after_stop_seconds: int | None = None
    persistent: bool | None = None
    preserve_memory_on_stop: bool | None = None
    restore_memory: bool | None = None
    vcpus: float | None = None
    cpu_millicores: int | None = None
    mem_bytes: int | None = None
    fs_capacity_bytes: int | None = None
    labels: dict[str, str] | None = None
    run_config: RunConfigBody | None = None
    env_vars: dict[str, str] | None = None
    mount_config: Any = None
    proxy_config: Any = attrs.field(default=None, repr=False)
    access_delegation: Any = None
    volumes: Any = None
    tag_value_ids: Any = None

    @property
    def waits(self) -> bool:
        return self.wait_for_ready is not False

    @property
    def patience(self) -> float:
        """How long to wait for the sandbox to be ready, in seconds."""
        return 30.0 if self.timeout is None else self.timeout

    @property
    def snapshot_reference(self) -> str | None:
        return self.snapshot_id or self.snapshot or self.snapshot_name

    def resolve(self, snapshot: Snapshot, fingerprint: bytes) -> NewSandbox:
        """What to create. Raises InvalidFieldsError if it does not fit, ApiError 400 if the snapshot is not ready."""
        if snapshot.status is not SnapshotStatus.READY:
            reason = f": {snapshot.status_message}" if snapshot.status_message else ""
            message = f"snapshot {snapshot.name!r} is {snapshot.status}{reason}"
            raise ApiError(400, "SnapshotNotReady", message)
        capacity = snapshot.fs_capacity_bytes
        if self.fs_capacity_bytes is not None and snapshot.origin is Origin.BASE and self.fs_capacity_bytes > capacity:
            message = f"snapshot {snapshot.name!r} offers {capacity} bytes and this server cannot add to them"
            raise InvalidFieldsError([Detail("fs_capacity_bytes", message)])
        if snapshot.origin is not Origin.BASE:
            capacity = max(capacity, self.fs_capacity_bytes or 0)
        millicores = self.cpu_millicores
        if millicores is None and self.vcpus is not None:
            millicores = round(self.vcpus * 1000)
        run_config = _run_config(self)
        return NewSandbox(
            name=self.name,
            snapshot=snapshot,
            fingerprint=fingerprint,
            settings=Settings(
                idle_ttl_seconds=self.idle_ttl_seconds or 0,
                delete_after_stop_seconds=self.delete_after_stop_seconds or 0,
                cpu_millicores=millicores,
                mem_bytes=self.mem_bytes,
                fs_capacity_bytes=capacity,
                labels={**snapshot.labels, **(self.labels or {})},
                proxy_config=parse_proxy_config(self.proxy_config) if self.proxy_config is not None else NO_RULES,
                run_config=RunConfig(
                    user=run_config.user,
                    work_dir=run_config.work_dir,
                    env_vars={**(self.env_vars or {}), **(run_config.env_vars or {})},
                ),
            ),
        )


def parse_create(body: bytes, *, key: bytes) -> tuple[CreateRequest, bytes]:
    """A valid request and its fingerprint, which is the same for the same body with the same API key.

    Raises ApiError 400 for what is not a JSON object, and InvalidFieldsError, which names every bad field.
    """
    document, request = structure_body(body, CreateRequest)
    check_fields(request, _CHECKS)
    fingerprint = hashlib.sha256(json.dumps(document, sort_keys=True).encode() + b"\0" + key).digest()
    return request, fingerprint


def structure_body(body: bytes, kind: type[T]) -> tuple[dict[str, Any], T]:
    """A request's JSON object as it is and as a `kind`, an attrs class; values are not checked yet.

    Raises ApiError 400 for what is not a JSON object, and InvalidFieldsError for fields of the wrong type.
    """
    try:
        document = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "InvalidRequest", f"the request body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ApiError(400, "InvalidRequest", "the request body is not a JSON object")
    try:
        return document, _CONVERTER.structure(document, kind)
    except ClassValidationError as error:
        raise InvalidFieldsError(list(_details(error, ""))) from None


def check_fields(request: T, checks: Sequence[tuple[str, Callable[[T], str | None]]]) -> None:
    """Raises InvalidFieldsError that names every field of which its check says that something is wrong."""
    details = [
        Detail(field, f"{field}: {message}") for field, check in checks if (message := check(request)) is not None
    ]
    if details:
        raise InvalidFieldsError(details)


# Types: JSON's own, nothing converted.


def _exactly(kind: type, word: str) -> Callable[[object, object], object]:
    def structure(value: object, _: object) -> object:
        if type(value) is not kind:
            raise ValueError(f"must be {word}")
        return value

    return structure


def _number(value: object, _: object) -> float:
    if type(value) not in (int, float):
        raise ValueError("must be a number")
    return float(value)  # type: ignore[arg-type]


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(bool, _exactly(bool, "true or false"))
    converter.register_structure_hook(int, _exactly(int, "a whole number"))
    converter.register_structure_hook(str, _exactly(str, "a string"))
    converter.register_structure_hook(float, _number)
    return converter


_CONVERTER: Final = _converter()


def _details(error: BaseException, path: str) -> Sequence[Detail]:
    """Flatten what cattrs found into one detail per field."""
    if isinstance(error, ClassValidationError):
        found: list[Detail] = []
        noted, others = error.group_exceptions()
        for inner, note in noted:
            found += _details(inner, f"{path}.{note.name}" if path else note.name)
        for other in others:
            found += _details(other, path)
        return found
    if isinstance(error, IterableValidationError):
        return [Detail(path, "has a key or a value that is not a string")]
    if isinstance(error, ForbiddenExtraKeysError):
        names = sorted(error.extra_fields)
        return [Detail(f"{path}.{name}" if path else name, "is not a field that this server knows") for name in names]
    return [Detail(path, str(error) if type(error) is ValueError else "has the wrong type")]


# Values: each check says what is wrong with its field, or None.


def _name(request: CreateRequest) -> str | None:
    if request.name is None:
        return None
    if not NAME.fullmatch(request.name):
        return "must be 1 to 63 of a-z, 0-9 and -, not beginning or ending with -"
    return "must not look like a UUID" if is_uuid(request.name) else None


def is_uuid(text: str) -> bool:
    """Whether a name would be taken for an id."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _one_snapshot(request: CreateRequest) -> str | None:
    named = {reference for reference in (request.snapshot, request.snapshot_name) if reference is not None}
    if len(named) > 1 or (named and request.snapshot_id is not None):
        return "name at most one of snapshot_id, snapshot and snapshot_name"
    return None


def _labels(request: CreateRequest) -> str | None:
    return check_labels(request.labels)


def check_labels(labels: Mapping[str, str] | None) -> str | None:
    """What is wrong with labels, or None."""
    labels = labels or {}
    if len(labels) > MAX_LABELS:
        return f"has more than {MAX_LABELS} entries"
    for key, value in labels.items():
        if not 0 < len(key.encode()) <= MAX_LABEL_KEY or len(value.encode()) > MAX_LABEL_VALUE:
            return f"a key has 1 to {MAX_LABEL_KEY} bytes and a value at most {MAX_LABEL_VALUE}"
        if key.startswith(RESERVED_LABELS):
            return f"the prefix {RESERVED_LABELS!r} is reserved"
    return None


def _run_config(request: CreateRequest) -> RunConfigBody:
    return request.run_config or RunConfigBody()


def check_work_dir(work_dir: str | None) -> str | None:
    """What is wrong with a directory to run in, or None."""
    if work_dir is None:
        return None
    return None if work_dir.startswith("/") and "\0" not in work_dir else "must be an absolute path"


def check_user(user: str | None) -> str | None:
    """What is wrong with a user to run as, or None."""
    return None if user is None or re.fullmatch(r"[\w.-]+(:[\w.-]+)?", user) else "must be user or user:group"


def check_environment(variables: Mapping[str, str] | None) -> str | None:
    """What is wrong with variables, or None."""
    for name, value in (variables or {}).items():
        if not name or "=" in name or "\0" in name + value:
            return "a name is not empty and has no '=', and neither name nor value has a NUL"
    return None


def _between(field: str, low: float, high: float, unit: str) -> Callable[[CreateRequest], str | None]:
    def check(request: CreateRequest) -> str | None:
        value = getattr(request, field)
        if value is None or low <= value <= high:
            return None
        return (
            f"must be {low:,.15g} to {high:,.15g} {unit}"
            if high < float("inf")
            else f"must be at least {low:,.15g} {unit}"
        )

    return check


def _only_if(field: str, harmless: Sequence[object], why: str) -> Callable[[CreateRequest], str | None]:
    def check(request: CreateRequest) -> str | None:
        return None if getattr(request, field) in harmless else why

    return check


_CHECKS: Final[Sequence[tuple[str, Callable[[CreateRequest], str | None]]]] = (
    ("name", _name),
    ("snapshot", _one_snapshot),
    ("labels", _labels),
    ("run_config.work_dir", lambda request: check_work_dir(_run_config(request).work_dir)),
    ("run_config.user", lambda request: check_user(_run_config(request).user)),
    ("run_config.env_vars", lambda request: check_environment(_run_config(request).env_vars)),
    ("env_vars", lambda request: check_environment(request.env_vars)),
    ("timeout", _between("timeout", 0, MAX_TIMEOUT, "seconds")),
    ("idle_ttl_seconds", _between("idle_ttl_seconds", 0, float("inf"), "seconds")),
    ("delete_after_stop_seconds", _between("delete_after_stop_seconds", 0, MAX_DELETE_AFTER_STOP, "seconds")),
    ("vcpus", _between("vcpus", CPU_MILLICORES[0] / 1000, CPU_MILLICORES[-1] / 1000, "vCPU")),
    ("cpu_millicores", _between("cpu_millicores", CPU_MILLICORES[0], CPU_MILLICORES[-1], "thousandths of a CPU")),
    ("mem_bytes", _between("mem_bytes", 1, float("inf"), "bytes")),
    ("fs_capacity_bytes", _between("fs_capacity_bytes", 1, float("inf"), "bytes")),
    ("persistent", _only_if("persistent", (None, True), "this server keeps a sandbox's files across a stop")),
    ("preserve_memory_on_stop", _only_if("preserve_memory_on_stop", (None, False), "this server keeps no memory")),
    ("restore_memory", _only_if("restore_memory", (None, False), "this server keeps no memory")),
    ("mount_config", _only_if("mount_config", (None, {}), "this server offers no mounts")),
    ("access_delegation", _only_if("access_delegation", (None,), "this server delegates no access")),
    ("volumes", _only_if("volumes", (None, []), "this server offers no volumes")),
    ("tag_value_ids", _only_if("tag_value_ids", (None, []), "this server has no tags for sandboxes")),
)
