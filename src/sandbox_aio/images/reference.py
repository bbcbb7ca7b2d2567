"""How images are named: `[registry/]repository[:tag][@digest]`."""

from __future__ import annotations

import re
from typing import Final

import attrs

from .errors import ImageError

__all__ = ["DOCKER_HUB", "ImageReference"]

DOCKER_HUB: Final = "docker.io"
MAX_REPOSITORY: Final = 255
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_REGISTRY: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@attrs.frozen(kw_only=True)
class ImageReference:
    """One name of an image. A short one is Docker Hub's, as everywhere: `debian` is `docker.io/library/debian`."""

    registry: str
    """Host and perhaps port."""
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> ImageReference:
        """Take a name apart. Raises ImageError, of kind `ImageReference`, that says what is wrong with it."""
        rest, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise _error(text, f"{digest!r} is no digest: sha256: and 64 of 0-9 and a-f")
        first, slash, after = rest.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            registry, rest = first.lower(), after
            if not _is_registry(registry):
                raise _error(text, f"{registry!r} is not a host and a port")
        else:
            registry = DOCKER_HUB
        rest, colon, tag = rest.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise _error(text, f"{tag!r} is no tag: letters, digits, '_', '.' and '-', at most 128")
        if rest != rest.lower():
            raise _error(text, f"the repository {rest!r} has capital letters")
        if not _REPOSITORY.fullmatch(rest) or len(rest) > MAX_REPOSITORY:
            raise _error(text, f"{rest!r} is no repository: names of a-z, 0-9, '.', '_' and '-', with '/' between them")
        if registry in ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"):
            registry = DOCKER_HUB
        if registry == DOCKER_HUB and "/" not in rest:
            rest = f"library/{rest}"
        if not colon and not at:
            tag = "latest"
        return cls(registry=registry, repository=rest, tag=tag or None, digest=digest or None)

    @property
    def wanted(self) -> str:
        """What a manifest is asked for by: the digest, if there is one, else the tag."""
        wanted = self.digest or self.tag
        assert wanted is not None
        return wanted

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def _is_registry(text: str) -> bool:
    if not _REGISTRY.fullmatch(text) or ".." in text:
        return False
    port = text.rpartition(":")[2] if not text.endswith("]") else ""
    return not (":" in text and port.isdigit()) or 0 < int(port) < 1 << 16


def _error(text: str, reason: str) -> ImageError:
    return ImageError(f"{text[:300]!r} is not the name of an image: {reason}", kind="ImageReference")
