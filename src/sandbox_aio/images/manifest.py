"""What a registry says of an image: indexes, manifests and configurations, of OCI and of Docker's schema 2."""

from __future__ import annotations

import hashlib
import json
import platform
import posixpath
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from .errors import ImageError

__all__ = [
    "ACCEPTED",
    "ARCHITECTURE",
    "MAX_IMAGE_LAYERS",
    "Descriptor",
    "ImageConfig",
    "Manifest",
    "chain_ids",
    "choose_platform",
    "parse_config",
    "parse_manifest",
    "write_config",
]

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPTED: Final = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_CONFIGS: Final = (OCI_CONFIG, "application/vnd.docker.container.image.v1+json", "application/octet-stream")
MAX_IMAGE_LAYERS: Final = 400
"""Layers of one image; what a sandbox can be stacked from leaves room for captures."""
MAX_LAYER_BYTES: Final = 1 << 40
MAX_NAMED: Final = 30
"""Platforms that an error lists."""

ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
"""This machine's, as images call it."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class Descriptor:
    """A blob by its digest, with the size it has."""

    digest: str
    size: int
    media_type: str = ""


@attrs.frozen(kw_only=True)
class Manifest:
    """The parts of one image; the lowest layer first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@attrs.frozen(kw_only=True)
class ImageConfig:
    """What an image says of itself."""

    architecture: str = ARCHITECTURE
    user: str | None = None
    work_dir: str | None = None
    env_vars: Mapping[str, str] = attrs.field(factory=dict)
    diff_ids: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = attrs.field(factory=dict)


def parse_manifest(data: bytes, *, image: str) -> Manifest | list[tuple[str, Descriptor]]:
    """A manifest; or, of an index, its manifests with the platform of each, as `os/architecture`.

    Raises ImageError, of kind `ImagePull`.
    """
    document = _object(data, image, "manifest")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise _error(image, "its manifest is an index and a manifest at once, which only a forgery is")
    if isinstance(document.get("manifests"), list):
        return [_platform(entry, image) for entry in document["manifests"]]
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise _error(image, "its manifest is of schema 1, which registries have given up; push it anew")
    if "config" not in document or not isinstance(document.get("layers"), list):
        raise _error(image, "its manifest has no config or no layers: it is no image to run")
    config = _descriptor(document["config"], image)
    if config.media_type and config.media_type not in _CONFIGS:
        raise _error(image, f"it is no image to run, but something of type {config.media_type[:100]!r}")
    layers = tuple(_descriptor(layer, image) for layer in document["layers"])
    if len(layers) > MAX_IMAGE_LAYERS:
        raise _error(image, f"it has {len(layers)} layers, more than {MAX_IMAGE_LAYERS}; flatten it")
    return Manifest(config=config, layers=layers)


def choose_platform(manifests: list[tuple[str, Descriptor]], *, image: str) -> Descriptor:
    """The manifest for this machine. Raises ImageError, of kind `ImagePlatform`, that lists what there is."""
    wanted = f"linux/{ARCHITECTURE}"
    for name, descriptor in manifests:
        if name in (wanted, f"{wanted}/v8"):
            return descriptor
    names = sorted({name[:40] for name, _ in manifests if not name.startswith("unknown")})
    there = ", ".join(names[:MAX_NAMED]) + (" and more" if len(names) > MAX_NAMED else "") or "nothing"
    raise ImageError(f"{image} is not built for {wanted}, but for {there}", kind="ImagePlatform")


def parse_config(data: bytes, *, image: str, layers: int) -> ImageConfig:
    """The configuration of an image with so many layers. Raises ImageError."""
    document = _object(data, image, "configuration")
    system, architecture = document.get("os", "linux"), document.get("architecture", ARCHITECTURE)
    if system != "linux" or architecture != ARCHITECTURE:
        raise ImageError(
            f"{image} is built for {system}/{architecture}, and this machine is linux/{ARCHITECTURE}",
            kind="ImagePlatform",
        )
    rootfs, config = document.get("rootfs"), document.get("config")
    diff_ids = _texts(rootfs.get("diff_ids") if isinstance(rootfs, dict) else None)
    if len(diff_ids) != layers or not all(_DIGEST.fullmatch(diff_id) for diff_id in diff_ids):
        raise _error(image, f"its configuration names {len(diff_ids)} layers, and its manifest {layers}")
    config = config if isinstance(config, dict) else {}
    pairs = (entry.partition("=") for entry in _texts(config.get("Env")))
    work_dir = config.get("WorkingDir")
    return ImageConfig(
        architecture=architecture,
        user=_text(config.get("User")),
        work_dir=posixpath.join("/", work_dir) if isinstance(work_dir, str) and work_dir else None,
        env_vars={name: value for name, equals, value in pairs if name and equals and "\0" not in name + value},
        diff_ids=diff_ids,
        entrypoint=_texts(config.get("Entrypoint")),
        cmd=_texts(config.get("Cmd")),
        exposed_ports=tuple(str(port) for port in _mapping(config.get("ExposedPorts"))),
        labels={name: str(value) for name, value in _mapping(config.get("Labels")).items()},
    )


def write_config(config: ImageConfig) -> bytes:
    """A configuration as it goes to a registry. Equal ones give equal bytes: there is no time in it."""
    run: dict[str, Any] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": [f"{name}={value}" for name, value in config.env_vars.items()],
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "WorkingDir": config.work_dir,
        "Labels": dict(config.labels),
    }
    document = {
        "architecture": config.architecture,
        "os": "linux",
        "config": {name: value for name, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": list(config.diff_ids)},
        "history": [{"created_by": "sandbox-aio"} for _ in config.diff_ids],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """What each layer, with all below it, is called (OCI image specification, "Layer ChainID")."""
    found: list[str] = []
    for diff_id in diff_ids:
        below = f"{found[-1]} {diff_id}".encode() if found else b""
        found.append(f"sha256:{hashlib.sha256(below).hexdigest()}" if found else diff_id)
    return tuple(found)


def _object(data: bytes, image: str, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _error(image, f"its {what} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _error(image, f"its {what} is no object")
    return document


def _descriptor(value: object, image: str) -> Descriptor:
    if isinstance(value, dict):
        digest, size, media_type = value.get("digest"), value.get("size"), value.get("mediaType", "")
        if (
            isinstance(digest, str)
            and _DIGEST.fullmatch(digest)
            and type(size) is int
            and 0 <= size <= MAX_LAYER_BYTES
            and isinstance(media_type, str)
        ):
            return Descriptor(digest=digest, size=size, media_type=media_type)
    raise _error(image, f"its manifest has a part that is no descriptor: {str(value)[:200]}")


def _platform(value: object, image: str) -> tuple[str, Descriptor]:
    descriptor = _descriptor(value, image)
    found = value.get("platform") if isinstance(value, dict) else None
    if not isinstance(found, dict):
        return f"linux/{ARCHITECTURE}", descriptor
    names = (found.get("os"), found.get("architecture"), found.get("variant"))
    return "/".join(str(name) for name in names if name), descriptor


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...]:
    return tuple(entry for entry in value if isinstance(entry, str)) if isinstance(value, list) else ()


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _error(image: str, reason: str) -> ImageError:
    return ImageError(f"{image} cannot be used: {reason}", kind="ImagePull")
