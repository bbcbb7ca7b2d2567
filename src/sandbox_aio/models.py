"""The values that users see: what a sandbox, a snapshot, a command's result and a file look like.

All classes are immutable and can be built by position. `from_dict` reads the service's JSON (wire protocol, sections
1.6, 1.10, 1.11, 4 and 7.4): unknown members are ignored, missing ones and nulls take the default, and a member of a
wrong type is a `RemoteProtocolError` that names it. Sizes are in bytes, durations in seconds, timestamps RFC 3339 in
UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict, TypeVar, overload

import attrs

from .errors import RemoteProtocolError, SandboxClientError

__all__ = [
    "CALLBACK_SIGNATURE_HEADER",
    "USER_TOKEN_HEADER",
    "AccessDelegation",
    "AccessDelegationMode",
    "AudienceMatcher",
    "DownloadContentDisposition",
    "DownloadURL",
    "ExecutionResult",
    "FileChunk",
    "FileInfo",
    "FileStat",
    "GlobResult",
    "GrepMatch",
    "GrepResult",
    "OutputChunk",
    "OutputGap",
    "Registry",
    "RegistryPage",
    "ResourceStatus",
    "RunConfig",
    "SandboxCallback",
    "SandboxCallbackIdentity",
    "SandboxCallbackRequest",
    "SandboxRecord",
    "SandboxUser",
    "ServiceAccess",
    "ServiceLoginURL",
    "Snapshot",
    "SnapshotTag",
    "TunnelStatistics",
]

T = TypeVar("T")

USER_TOKEN_HEADER = "X-Langsmith-User-Token"
"""The header in which a service learns who has logged in."""
CALLBACK_SIGNATURE_HEADER = "X-LangSmith-Signature-JWT"
"""The header that proves that a callback comes from the service."""

ServiceAccess = Literal["restricted", "workspace"]
"""Who may log in to a service."""
DownloadContentDisposition = Literal["attachment", "inline"]
"""Whether a browser saves a file or shows it."""
AudienceMatcher = Callable[[str], bool]
"""Tells whether a callback's URL is one of ours."""
AccessDelegationMode = Literal["EXPLICIT"]


class AccessDelegation(TypedDict):
    """What a sandbox may do in the name of its creator (wire protocol, section 1.12)."""

    mode: AccessDelegationMode
    permissions: list[str]


class _Members:
    """Reads the members of one JSON object, and names the member that is wrong."""

    def __init__(self, data: object, what: str) -> None:
        if not isinstance(data, Mapping):
            raise RemoteProtocolError(f"the server sent {data!r:.80} where a {what} was expected")
        self._data: Mapping[Any, Any] = data
        self._what = what

    def _get(self, name: str, kind: type[T]) -> T | None:
        value = self._data.get(name)
        if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return value
        raise RemoteProtocolError(
            f"the server sent a {self._what} whose {name!r} is {value!r:.80}, not {kind.__name__}"
        )

    @overload
    def text(self, name: str) -> str | None: ...
    @overload
    def text(self, name: str, default: str) -> str: ...
    def text(self, name: str, default: str | None = None) -> str | None:
        value = self._get(name, str)
        return default if value is None else value

    @overload
    def number(self, name: str) -> int | None: ...
    @overload
    def number(self, name: str, default: int) -> int: ...
    def number(self, name: str, default: int | None = None) -> int | None:
        value = self._data.get(name)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        value = self._get(name, int)
        return default if value is None else value

    def flag(self, name: str) -> bool | None:
        return self._get(name, bool)

    def required_text(self, name: str) -> str:
        value = self._get(name, str)
        if not value:
            raise RemoteProtocolError(f"the server sent a {self._what} without {name!r}")
        return value

    def list_of(self, name: str, read: Callable[[Any], T]) -> list[T]:
        return [read(item) for item in self._get(name, list) or ()]

    def texts(self, name: str) -> dict[str, str] | None:
        value = self._get(name, dict)
        if value is None:
            return None
        members = _Members(value, f"{self._what}'s {name}")
        return {key: members.text(key, "") for key in value}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise RemoteProtocolError(f"the server sent {value!r:.80} where a text was expected")
    return value


@attrs.frozen
class OutputChunk:
    """A piece of a command's output."""

    stream: Literal["stdout", "stderr"]
    data: str
    """Whole characters, never empty."""
    offset: int = 0
    """Position in the stream of its first byte, in bytes of UTF-8."""

    @property
    def data_bytes(self) -> bytes:
        """The same as UTF-8: `len(data_bytes)` bytes of the stream, from `offset` on."""
        return self.data.encode()


@attrs.frozen
class OutputGap(OutputChunk):
    """Output that was lost: the sandbox's buffer had overwritten it before it could be read.

    Comes in the place of the lost output, with empty `data`, so that a loop over chunks that knows nothing of gaps
    goes on.
    """

    missing_bytes: int = attrs.field(kw_only=True)
    """How much is lost. The next chunk of the stream begins at `offset + missing_bytes`."""


@attrs.frozen(kw_only=True)
class TunnelStatistics:
    """What has passed through a tunnel so far."""

    open_connections: int
    """Local connections that are open now."""
    total_connections: int
    """Local connections that were accepted, those that led nowhere included."""
    refused_connections: int
    """Those that the sandbox refused: nothing listened at the port, or it may not be reached."""
    bytes_sent: int
    """From local programs into the sandbox."""
    bytes_received: int
    """From the sandbox to local programs."""
    reconnects: int
    """How often the tunnel's own connection was made anew."""
    last_error: SandboxClientError | None
    """Why the last local connection that failed did, or why the tunnel's connection was lost; None if neither was."""


@attrs.frozen
class ExecutionResult:
    """How a command ended, and all that it wrote."""

    stdout: str
    stderr: str
    exit_code: int
    """What the command returned; 128 + n if signal n ended it."""
    killed: bool = attrs.field(default=False, kw_only=True)
    """Whether this client killed it."""
    stdout_dropped_bytes: int = attrs.field(default=0, kw_only=True)
    """Bytes that `stdout` lacks: overwritten in the sandbox before they were read, or over the caller's limit."""
    stderr_dropped_bytes: int = attrs.field(default=0, kw_only=True)

    @property
    def success(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    @property
    def stdout_bytes(self) -> bytes:
        """`stdout` as UTF-8. What was no UTF-8 was replaced in the sandbox (wire protocol, section 9.1, A18)."""
        return self.stdout.encode()

    @property
    def stderr_bytes(self) -> bytes:
        """`stderr` as UTF-8, as `stdout_bytes` is."""
        return self.stderr.encode()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExecutionResult:
        """Read the answer of `POST /execute`. Without an `exit_code` it is -1."""
        members = _Members(data, "result of a command")
        return cls(members.text("stdout", ""), members.text("stderr", ""), members.number("exit_code", -1))


@attrs.frozen
class RunConfig:
    """Who runs a command, where, and with which variables; None leaves it to the layer below (section 1.12)."""

    user: str | None = None
    """`name`, `uid`, `name:group` or `uid:gid`."""
    work_dir: str | None = None
    """An absolute path."""
    env_vars: Mapping[str, str] | None = None
    """Merged over those of the layer below."""

    def to_payload(self) -> dict[str, Any]:
        """The JSON object, without what is None."""
        payload: dict[str, Any] = {}
        if self.user is not None:
            payload["user"] = self.user
        if self.work_dir is not None:
            payload["work_dir"] = self.work_dir
        if self.env_vars is not None:
            payload["env_vars"] = dict(self.env_vars)
        return payload

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Read the service's JSON object."""
        members = _Members(data, "run_config")
        return cls(members.text("user"), members.text("work_dir"), members.texts("env_vars"))


def _run_config(data: Mapping[str, Any]) -> RunConfig | None:
    value = data.get("run_config")
    return None if value is None else RunConfig.from_dict(value)


@attrs.frozen
class ResourceStatus:
    """Where a sandbox is in its life: `provisioning`, `ready`, `failed`, `stopped` or `deleting`."""

    status: str
    status_message: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResourceStatus:
        """Read the service's JSON object. Without a status it counts as `provisioning`."""
        members = _Members(data, "status")
        return cls(members.text("status", "provisioning"), members.text("status_message"))


@attrs.frozen
class Snapshot:
    """A file system that sandboxes start from (wire protocol, section 1.10)."""

    id: str
    name: str
    status: str
    """`building`, `ready`, `failed` or `deleting`."""
    fs_capacity_bytes: int
    docker_image: str | None = None
    image_digest: str | None = None
    source_sandbox_id: str | None = None
    status_message: str | None = None
    fs_used_bytes: int | None = None
    created_by: str | None = None
    registry_id: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    tags: list[str] = attrs.field(factory=list)
    """Empty when no tag points here any more."""
    run_config: RunConfig | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Snapshot:
        """Read the service's JSON object. Without a status it counts as `building`."""
        members = _Members(data, "snapshot")
        return cls(
            id=members.required_text("id"),
            name=members.text("name", ""),
            status=members.text("status", "building"),
            fs_capacity_bytes=members.number("fs_capacity_bytes", 0),
            docker_image=members.text("docker_image"),
            image_digest=members.text("image_digest"),
            source_sandbox_id=members.text("source_sandbox_id"),
            status_message=members.text("status_message"),
            fs_used_bytes=members.number("fs_used_bytes"),
            created_by=members.text("created_by"),
            registry_id=members.text("registry_id"),
            created_at=members.text("created_at"),
            updated_at=members.text("updated_at"),
            tags=members.list_of("tags", _text),
            run_config=_run_config(data),
        )


@attrs.frozen
class SnapshotTag:
    """A tag of a snapshot's name, and what it points at."""

    tag: str
    snapshot_id: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SnapshotTag:
        """Read the service's JSON object."""
        members = _Members(data, "snapshot tag")
        return cls(members.required_text("tag"), members.required_text("snapshot_id"))


@attrs.frozen
class Registry:
    """An image registry that the service has credentials for (wire protocol, section 1.11). It never tells them."""

    id: str
    """What `registry_id` is, where a snapshot is made."""
    name: str
    url: str
    auth_type: str | None = None
    """`DOCKER_CONFIG` (user name and password) or `AWS_ROLE`."""
    aws_role_arn: str | None = None
    provider: str | None = None
    """Whose it is, such as `DOCKER_REGISTRY` or `GHCR`."""
    repository_search_mode: str | None = None
    """How far it lists its repositories: `GLOBAL`, `SCOPED` or `NONE`."""
    created_at: str | None = None
    created_by: str | None = None
    updated_at: str | None = None
    updated_by: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Registry:
        """Read the service's JSON object."""
        members = _Members(data, "registry")
        return cls(
            id=members.required_text("id"),
            name=members.text("name", ""),
            url=members.text("url", ""),
            auth_type=members.text("auth_type"),
            aws_role_arn=members.text("aws_role_arn"),
            provider=members.text("provider"),
            repository_search_mode=members.text("repository_search_mode"),
            created_at=members.text("created_at"),
            created_by=members.text("created_by"),
            updated_at=members.text("updated_at"),
            updated_by=members.text("updated_by"),
        )


@attrs.frozen
class RegistryPage:
    """One page of registries (wire protocol, section 1.15). Iterable and sized."""

    items: list[Registry] = attrs.field(factory=list)
    next_cursor: str | None = None
    """The `cursor` of the next page; None after the last one."""
    offset: int = 0
    """The `offset` of the next page; 0 after the last one."""

    @property
    def registries(self) -> list[Registry]:
        """An older name of `items`."""
        return self.items

    def __iter__(self) -> Iterator[Registry]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RegistryPage:
        """Read the service's JSON object, which has `items` or else `registries`."""
        members = _Members(data, "list of registries")
        items = members.list_of("items", Registry.from_dict) or members.list_of("registries", Registry.from_dict)
        return cls(items, members.text("next_cursor"), members.number("offset", 0))


@attrs.frozen
class FileInfo:
    """A file or directory that `glob` or `ls` found."""

    path: str
    """Absolute."""
    is_dir: bool = False
    size_bytes: int = 0
    modified_at: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FileInfo:
        """Read the service's JSON object."""
        members = _Members(data, "file")
        return cls(
            members.text("path", ""),
            members.flag("is_dir") or False,
            members.number("size_bytes", 0),
            members.text("modified_at"),
        )


@attrs.frozen
class GlobResult:
    """What `glob` or `ls` found, in lexical order. Iterable and sized."""

    matches: list[FileInfo] = attrs.field(factory=list)
    truncated: bool = False
    """Whether there is more than the limit or the deadline let through."""

    def __iter__(self) -> Iterator[FileInfo]:
        return iter(self.matches)

    def __len__(self) -> int:
        return len(self.matches)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GlobResult:
        """Read the service's JSON object."""
        members = _Members(data, "list of files")
        return cls(members.list_of("matches", FileInfo.from_dict), members.flag("truncated") or False)


@attrs.frozen
class GrepMatch:
    """A line that `grep` found."""

    path: str
    line: int
    """Counted from 1."""
    text: str
    """The line without its terminator."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GrepMatch:
        """Read the service's JSON object."""
        members = _Members(data, "line")
        return cls(members.text("path", ""), members.number("line", 0), members.text("text", ""))


@attrs.frozen
class GrepResult:
    """What `grep` found. Iterable and sized."""

    matches: list[GrepMatch] = attrs.field(factory=list)
    truncated: bool = False
    """Whether there is more than the limit or the deadline let through."""

    def __iter__(self) -> Iterator[GrepMatch]:
        return iter(self.matches)

    def __len__(self) -> int:
        return len(self.matches)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GrepResult:
        """Read the service's JSON object."""
        members = _Members(data, "list of lines")
        return cls(members.list_of("matches", GrepMatch.from_dict), members.flag("truncated") or False)


@attrs.frozen
class FileStat:
    """What is known of a file without reading it."""

    size_bytes: int
    etag: str | None = None
    """Changes whenever the content changes; quoted as on the wire."""
    last_modified: str | None = None
    content_type: str | None = None


@attrs.frozen
class FileChunk:
    """A part of a file, from `read_range` (wire protocol, section 4.2)."""

    content: bytes
    etag: str | None = None
    total_bytes: int | None = None
    """The size of the whole file, when the sandbox told it."""
    start: int = 0
    """Position of the first byte of `content` in the file."""
    partial: bool = False
    """False: `content` is the whole file."""
    unchanged: bool = False
    """The file still has the ETag given as `if_none_match`; `content` is empty."""
    last_modified: str | None = None

    @property
    def end(self) -> int:
        """Position just after the last byte of `content`."""
        return self.start + len(self.content)


def _access_delegation(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Only an explicit, non-empty delegation counts (wire protocol, section 1.6)."""
    value = data.get("access_delegation")
    if isinstance(value, Mapping) and value.get("mode") == "EXPLICIT":
        permissions = value.get("permissions")
        if isinstance(permissions, list) and permissions:
            return {"mode": "EXPLICIT", "permissions": [_text(permission) for permission in permissions]}
    return None


@attrs.frozen
class SandboxRecord:
    """A sandbox as the service described it at one moment (wire protocol, section 1.6)."""

    name: str
    dataplane_url: str | None = None
    id: str | None = None
    status: str = "ready"
    status_message: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    idle_ttl_seconds: int | None = None
    delete_after_stop_seconds: int | None = None
    stopped_at: str | None = None
    snapshot_id: str | None = None
    vcpus: float | None = None
    mem_bytes: int | None = None
    fs_capacity_bytes: int | None = None
    run_config: RunConfig | None = None
    access_delegation: dict[str, Any] | None = None
    preserve_memory_on_stop: bool | None = None
    labels: dict[str, str] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SandboxRecord:
        """Read the service's JSON object. Only `name` must be there; without a status it counts as `ready`."""
        members = _Members(data, "sandbox")
        vcpus = data.get("vcpus")
        return cls(
            name=members.required_text("name"),
            dataplane_url=members.text("dataplane_url"),
            id=members.text("id"),
            status=members.text("status", "ready"),
            status_message=members.text("status_message"),
            created_at=members.text("created_at"),
            updated_at=members.text("updated_at"),
            idle_ttl_seconds=members.number("idle_ttl_seconds"),
            delete_after_stop_seconds=members.number("delete_after_stop_seconds"),
            stopped_at=members.text("stopped_at"),
            snapshot_id=members.text("snapshot_id"),
            vcpus=vcpus if isinstance(vcpus, float) else members.number("vcpus"),
            mem_bytes=members.number("mem_bytes"),
            fs_capacity_bytes=members.number("fs_capacity_bytes"),
            run_config=_run_config(data),
            access_delegation=_access_delegation(data),
            preserve_memory_on_stop=members.flag("preserve_memory_on_stop"),
            labels=members.texts("labels"),
        )


@attrs.frozen
class ServiceLoginURL:
    """Where people who may log in reach a service (wire protocol, section 6.4)."""

    url: str
    access: str
    """Who may: `restricted` or `workspace`."""
    embed_origins: list[str] = attrs.field(factory=list)
    """The origins whose pages may show it in a frame."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ServiceLoginURL:
        """Read the service's JSON object, which has a `browser_url` or else a `service_url`."""
        members = _Members(data, "service URL")
        return cls(
            url=members.text("browser_url") or members.required_text("service_url"),
            access=members.required_text("access"),
            embed_origins=members.list_of("embed_origins", _text),
        )


@attrs.frozen
class DownloadURL:
    """A link to a file of a sandbox. Whoever has it can read the file (wire protocol, section 6.5)."""

    download_url: str
    token: str = attrs.field(repr=False)
    expires_at: str | None = None
    """None: it lasts as long as the sandbox."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DownloadURL:
        """Read the service's JSON object."""
        members = _Members(data, "download URL")
        return cls(
            download_url=members.required_text("download_url"),
            token=members.required_text("token"),
            expires_at=members.text("expires_at"),
        )


@attrs.frozen
class SandboxUser:
    """Who has logged in to a service, as a verified token says (wire protocol, section 6.6)."""

    subject: str
    """Identifies the person."""
    email: str | None
    name: str | None
    expires_at: datetime
    """When the token expires; UTC."""


@attrs.frozen
class SandboxCallbackIdentity:
    """On whose behalf a sandbox asked."""

    tenant_id: str
    sandbox_id: str
    organization_id: str | None = None
    ls_user_id: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SandboxCallbackIdentity:
        """Read the service's JSON object."""
        members = _Members(data, "callback's identity")
        return cls(
            tenant_id=members.required_text("tenant_id"),
            sandbox_id=members.required_text("sandbox_id"),
            organization_id=members.text("organization_id"),
            ls_user_id=members.text("ls_user_id"),
        )


@attrs.frozen
class SandboxCallbackRequest:
    """What a sandbox wants to send."""

    method: str
    url: str
    scheme: str
    host: str
    path: str
    query: str | None = None
    headers: dict[str, list[str]] = attrs.field(factory=dict)
    body_base64: str | None = attrs.field(default=None, repr=False)
    body_truncated: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SandboxCallbackRequest:
        """Read the service's JSON object."""
        members = _Members(data, "callback's request")
        headers = data.get("headers") or {}
        if not isinstance(headers, Mapping):
            raise RemoteProtocolError(f"the server sent a callback's request whose 'headers' are {headers!r:.80}")
        return cls(
            method=members.required_text("method"),
            url=members.required_text("url"),
            scheme=members.required_text("scheme"),
            host=members.required_text("host"),
            path=members.required_text("path"),
            query=members.text("query"),
            headers={
                name: _Members({"values": values}, "header").list_of("values", _text)
                for name, values in headers.items()
            },
            body_base64=members.text("body_base64"),
            body_truncated=members.flag("body_truncated") or False,
        )


@attrs.frozen
class SandboxCallback:
    """A verified question of the service about what a sandbox wants to send (wire protocol, section 6.7)."""

    host: str
    port: int
    identity: SandboxCallbackIdentity
    request: SandboxCallbackRequest | None = None
    """Only for callbacks that are to hear of the whole request."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SandboxCallback:
        """Read the service's JSON object."""
        members = _Members(data, "callback")
        port, request = members.number("port"), data.get("request")
        if port is None:
            raise RemoteProtocolError("the server sent a callback without 'port'")
        return cls(
            host=members.required_text("host"),
            port=port,
            identity=SandboxCallbackIdentity.from_dict(data.get("identity") or {}),
            request=None if request is None else SandboxCallbackRequest.from_dict(request),
        )
