"""What the requests about snapshots and registries accept. Wire protocol, sections 1.10 and 1.11.

What this server cannot do is refused by name, never ignored.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import attrs

from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.reference import ImageReference

from .creation import (
    RunConfigBody,
    check_environment,
    check_fields,
    check_labels,
    check_user,
    check_work_dir,
    structure_body,
)
from .errors import ApiError, Detail, InvalidFieldsError
from .sandbox import RunConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "CaptureRequest",
    "CreateSnapshotRequest",
    "ImportRequest",
    "PushRequest",
    "TagRequest",
    "check_name",
    "parse_capture",
    "parse_create_snapshot",
    "parse_import",
    "parse_push",
    "parse_tag",
    "split_reference",
]

MAX_NAME: Final = 255
MAX_DESCRIPTION: Final = 1024
MAX_DIGITS: Final = 18
PARTS: Final = frozenset(("all", "mounts", "proxy_config", "env_vars", "resources", "lifecycle", "labels"))
"""What a capture may be asked to hold beside files."""
RESERVED: Final = "system/"
NAME: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*")
TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@attrs.frozen(kw_only=True)
class CreateSnapshotRequest:
    """The body of `POST /snapshots`; None means absent."""

    name: str
    docker_image: str
    fs_capacity_bytes: int
    tag: str | None = None
    registry_id: str | None = None
    run_config: RunConfigBody | None = None
    description: str | None = None
    labels: dict[str, str] | None = None

    @property
    def reference(self) -> ImageReference:
        """The image. Checked."""
        return ImageReference.parse(self.docker_image)

    @property
    def wanted_tag(self) -> str:
        """The tag that is published: the one asked for, else the image's, else `latest`."""
        return self.tag or self.reference.tag or "latest"


@attrs.frozen(kw_only=True)
class CaptureRequest:
    """The body of `POST /boxes/{name}/snapshot`; None means absent."""

    name: str
    tag: str | None = None
    fs_capacity_bytes: int | None = None
    run_config: RunConfigBody | None = None
    description: str | None = None
    labels: dict[str, str] | None = None
    docker_image: str | None = None
    checkpoint: Any = None
    include_memory: bool | None = None
    include: list[str] | None = None
    confirm_allow_snapshot_secret_values: bool | None = None
    image_config: Any = None


@attrs.frozen(kw_only=True)
class ImportRequest:
    """The query of `POST /snapshots/import`; None means absent."""

    name: str
    tag: str | None = None
    fs_capacity_bytes: int | None = None


@attrs.frozen(kw_only=True)
class TagRequest:
    """The body of `POST /snapshots/{reference}/tags`."""

    tag: str
    name: str | None = None


@attrs.frozen(kw_only=True)
class PushRequest:
    """The body of `POST /snapshots/{reference}/push`."""

    image: str
    registry_id: str | None = None

    @property
    def reference(self) -> ImageReference:
        """Where to. Checked."""
        return ImageReference.parse(self.image)


def parse_create_snapshot(body: bytes) -> CreateSnapshotRequest:
    """Raises ApiError 400 for what is not a JSON object, and InvalidFieldsError, which names every bad field."""
    _, request = structure_body(body, CreateSnapshotRequest)
    check_fields(request, (*_COMMON, ("docker_image", lambda request: _image(request.docker_image))))
    _refuse_reserved(request.name)
    return request


def parse_capture(body: bytes) -> CaptureRequest:
    """Raises ApiError 400 for what is not a JSON object, 501 for what this server does not do, InvalidFieldsError."""
    _, request = structure_body(body, CaptureRequest)
    check_fields(request, (*_COMMON, ("include", lambda request: _include(request.include))))
    _refuse_reserved(request.name)
    not_offered = {
        "checkpoint": "keeps no checkpoints",
        "include_memory": "keeps no memory",
        "image_config": "sets no entry point: none is run",
    }
    for member, reason in not_offered.items():
        if getattr(request, member) not in (None, False):
            raise ApiError(501, "NotImplemented", f"{member}: this server {reason}")
    if others := set(request.include or ()) - {"labels"}:
        names = ", ".join(sorted(others))
        raise ApiError(501, "NotImplemented", f"include: a capture holds files, and may hold labels, but not {names}")
    return request


def parse_import(asked: Mapping[str, str]) -> ImportRequest:
    """Raises InvalidFieldsError, which names every bad member of the query."""
    capacity = asked.get("fs_capacity_bytes")
    if capacity is not None and not (capacity.isascii() and capacity.isdigit() and len(capacity) <= MAX_DIGITS):
        raise InvalidFieldsError([Detail("fs_capacity_bytes", "fs_capacity_bytes: must be a number of bytes")])
    request = ImportRequest(
        name=asked.get("name", ""), tag=asked.get("tag"), fs_capacity_bytes=None if capacity is None else int(capacity)
    )
    check_fields(request, _COMMON[:3])
    _refuse_reserved(request.name)
    return request


def parse_tag(body: bytes) -> TagRequest:
    """Raises ApiError 400 for what is not a JSON object, and InvalidFieldsError, which names every bad field."""
    _, request = structure_body(body, TagRequest)
    check_fields(
        request,
        (
            ("tag", lambda request: _tag(request.tag)),
            ("name", lambda request: None if request.name is None else check_name(request.name)),
        ),
    )
    if request.name is not None:
        _refuse_reserved(request.name)
    return request


def parse_push(body: bytes) -> PushRequest:
    """Raises ApiError 400 for what is not a JSON object, and InvalidFieldsError, which names every bad field."""
    _, request = structure_body(body, PushRequest)
    check_fields(request, (("image", lambda request: _image(request.image)),))
    if request.reference.tag is None:
        raise InvalidFieldsError([Detail("image", "an image is pushed by a tag, not by a digest")])
    return request


def to_run_config(body: RunConfigBody | None) -> RunConfig:
    """What was asked for."""
    asked = body or RunConfigBody()
    return RunConfig(user=asked.user, work_dir=asked.work_dir, env_vars=asked.env_vars or {})


def split_reference(reference: str) -> tuple[str, str | None]:
    """A name and perhaps a tag."""
    name, colon, tag = reference.partition(":")
    return name, tag if colon else None


def check_name(name: str) -> str | None:
    """What is wrong with a snapshot's name, or None."""
    if len(name) > MAX_NAME or not NAME.fullmatch(name):
        return f"must be names of a-z, 0-9, '.', '_' and '-', with '/' between them, at most {MAX_NAME} in all"
    return "must not look like a UUID" if _UUID.fullmatch(name) else None


def _refuse_reserved(name: str) -> None:
    if f"{name}/".startswith(RESERVED):
        raise ApiError(403, "Forbidden", f"the names below {RESERVED} cannot be given")


def _tag(tag: str | None) -> str | None:
    if tag is None or TAG.fullmatch(tag):
        return None
    return "must be letters, digits, '_', '.' and '-', not beginning with '.' or '-', at most 128"


def _image(text: str) -> str | None:
    try:
        ImageReference.parse(text)
    except ImageError as error:
        return str(error)
    return None


def _capacity(request: Any) -> str | None:
    capacity = request.fs_capacity_bytes
    return None if capacity is None or capacity >= 1 else "must be at least 1 byte"


def _include(parts: Sequence[str] | None) -> str | None:
    return None if set(parts or ()) <= PARTS else f"must be some of {', '.join(sorted(PARTS))}"


def _description(request: Any) -> str | None:
    text = request.description
    return None if text is None or len(text) <= MAX_DESCRIPTION else f"must be at most {MAX_DESCRIPTION} characters"


def _run_config(request: Any) -> str | None:
    config: RunConfigBody = request.run_config or RunConfigBody()
    if wrong := check_work_dir(config.work_dir):
        return f"work_dir {wrong}"
    if wrong := check_user(config.user):
        return f"user {wrong}"
    wrong = check_environment(config.env_vars)
    return f"env_vars: {wrong}" if wrong else None


_COMMON: Final[Sequence[tuple[str, Callable[[Any], str | None]]]] = (
    ("name", lambda request: check_name(request.name)),
    ("tag", lambda request: _tag(request.tag)),
    ("fs_capacity_bytes", _capacity),
    ("description", _description),
    ("labels", lambda request: check_labels(request.labels)),
    ("run_config", _run_config),
)
