"""Image registries and the credentials for them. Wire protocol, section 1.11.

User names and passwords are sealed before they are written down, go to the registry they are for, and nowhere else.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs

from sandbox_aio.images.access import Credentials
from sandbox_aio.images.errors import ImageError
from sandbox_aio.images.reference import DOCKER_HUB, ImageReference

from .errors import ApiError, Detail, InvalidFieldsError
from .secrets import SecretBox, SecretError

if TYPE_CHECKING:
    from sandbox_aio.images.access import RegistryAccess

    from .database import Database
    from .registry_requests import RegistryChange

__all__ = ["ImageRegistry", "RegistryBook", "registry_host"]

MAX_REGISTRIES: Final = 1000

_DOCKER_HUB_HOSTS: Final = frozenset(
    (DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub.docker.com")
)
_PROVIDERS: Final = (
    (re.compile(r"docker\.io"), "DOCKER_HUB"),
    (re.compile(r"ghcr\.io"), "GHCR"),
    (re.compile(r"\d+\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?|public\.ecr\.aws"), "ECR"),
    (re.compile(r"([a-z0-9-]+\.)?gcr\.io|[a-z0-9-]+-docker\.pkg\.dev"), "GAR"),
    (re.compile(r"(.*[.-])?harbor[.-].*"), "HARBOR"),
)
"""Hosts by which a provider is known; any other is a plain registry."""
_SEARCH: Final = {"DOCKER_REGISTRY": "GLOBAL", "ECR": "GLOBAL", "HARBOR": "SCOPED", "GAR": "SCOPED"}
"""How the provider lists repositories: all of a registry, or those of one project of it. The others list none."""


@attrs.frozen(kw_only=True)
class ImageRegistry:
    """One version of a registry's record."""

    id: str
    name: str
    url: str
    """As it was given."""
    sealed: bytes | None = attrs.field(default=None, repr=False)
    """The credentials; None: there are none."""
    created_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    updated_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))

    @property
    def host(self) -> str:
        """What images of this registry begin with."""
        return registry_host(self.url)[0]

    @property
    def provider(self) -> str:
        """Whose registry it is, as far as its host tells."""
        name = self.host.partition(":")[0]
        return next((provider for hosts, provider in _PROVIDERS if hosts.fullmatch(name)), "DOCKER_REGISTRY")

    @property
    def repository_search_mode(self) -> str:
        """How far its provider lists repositories: `GLOBAL`, `SCOPED` or `NONE`."""
        return _SEARCH.get(self.provider, "NONE")

    def to_json(self) -> str:
        """For the database."""
        data = attrs.asdict(self)
        data["sealed"] = base64.b64encode(self.sealed).decode() if self.sealed is not None else None
        for name in ("created_at", "updated_at"):
            data[name] = data[name].isoformat()
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> ImageRegistry:
        """What `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        data = json.loads(text)
        data["sealed"] = base64.b64decode(data["sealed"]) if data["sealed"] is not None else None
        for name in ("created_at", "updated_at"):
            data[name] = datetime.fromisoformat(data[name])
        return cls(**data)


class RegistryBook:
    """All registries of one server. `reference` is a name or an id everywhere; an unknown one raises ApiError 404."""

    def __init__(self, access: RegistryAccess) -> None:
        self._access = access
        self._registries: dict[str, ImageRegistry] = {}
        self._database: Database
        self._box: SecretBox

    async def open(self, database: Database, box: SecretBox) -> None:
        """Learn what there is."""
        self._database, self._box = database, box
        for (text,) in await database.read("SELECT record FROM registries"):
            registry = ImageRegistry.from_json(text)
            self._registries[registry.id] = registry

    def list(self) -> list[ImageRegistry]:
        """All registries, in no order."""
        return list(self._registries.values())

    def get(self, reference: str) -> ImageRegistry:
        """By name or id."""
        found = self._registries.get(reference.lower()) or self._by_name(reference)
        if found is None:
            raise ApiError(404, "RegistryNotFound", f"there is no registry {reference!r}")
        return found

    def credentials(self, id: str, host: str) -> Credentials | None:
        """What to say to the registry of an image, at `host`.

        Raises ApiError 400 for an unknown registry, for one that is elsewhere, and for secrets that cannot be opened.
        """
        registry = self._registries.get(id.lower()) or self._by_name(id)
        if registry is None:
            raise ApiError(400, "RegistryNotFound", f"registry_id: there is no registry {id!r}")
        if registry.host != host:
            message = f"registry_id: the registry {registry.name!r} is at {registry.host}, and the image is at {host}"
            raise ApiError(400, "InvalidRequest", message)
        return self._open(registry)

    async def create(self, wanted: RegistryChange) -> ImageRegistry:
        """Record a registry. Raises ApiError 409 for a name that is taken, InvalidFieldsError."""
        assert wanted.name is not None
        assert wanted.url is not None
        if len(self._registries) >= MAX_REGISTRIES:
            raise ApiError(429, "QuotaExceeded", f"there are {MAX_REGISTRIES} registries, the limit; delete one")
        new = ImageRegistry(id=str(uuid.uuid4()), name=wanted.name, url=wanted.url)
        return await self._store(attrs.evolve(new, sealed=self._seal(new, wanted, None)))

    async def update(self, reference: str, change: RegistryChange) -> ImageRegistry:
        """Change what is named. Credentials do not move with the registry: for another host they are given anew.

        Raises ApiError 404, 409 for a name that is taken, InvalidFieldsError.
        """
        before = self.get(reference)
        url = change.url or before.url
        moved = registry_host(url)[0] != before.host
        if moved and before.sealed is not None and (change.username is None or change.password is None):
            message = f"url: the credentials are for {before.host}; give username and password for the new host"
            raise InvalidFieldsError([Detail("url", message)])
        after = attrs.evolve(before, name=change.name or before.name, url=url, updated_at=datetime.now(UTC))
        if change.username is not None or change.password is not None:
            known = self._open(before) if None in (change.username, change.password) else None
            after = attrs.evolve(after, sealed=self._seal(after, change, known))
        return await self._store(after)

    async def delete(self, reference: str) -> None:
        """Forget a registry and its credentials. Snapshots that came from it stay."""
        registry = self.get(reference)
        del self._registries[registry.id]
        self._database.write(("DELETE FROM registries WHERE id = ?", (registry.id,)))
        await self._database.committed()

    def _by_name(self, name: str) -> ImageRegistry | None:
        return next((registry for registry in self._registries.values() if registry.name == name), None)

    def _seal(self, registry: ImageRegistry, given: RegistryChange, known: Credentials | None) -> bytes | None:
        """The credentials that are given, or else known. An empty name and password mean none."""
        username = given.username if given.username is not None else known.username if known else ""
        password = given.password if given.password is not None else known.password if known else ""
        if bool(username) != bool(password):
            missing = "password" if username else "username"
            raise InvalidFieldsError([Detail(missing, f"{missing}: give username and password, or neither")])
        return self._box.seal(json.dumps([username, password]).encode(), registry.id) if username else None

    def _open(self, registry: ImageRegistry) -> Credentials | None:
        if registry.sealed is None:
            return None
        try:
            username, password = json.loads(self._box.open(registry.sealed, registry.id))
        except SecretError as error:
            message = f"the credentials of registry {registry.name!r} cannot be read: {error}"
            raise ApiError(400, "RegistrySecret", message) from error
        return Credentials(username, password)

    async def _store(self, registry: ImageRegistry) -> ImageRegistry:
        other = self._by_name(registry.name)
        if other is not None and other.id != registry.id:
            raise ApiError(409, "ResourceNameConflict", f"there is a registry named {registry.name!r} already")
        host, plain = registry_host(registry.url)
        if plain and not self._access.is_insecure(host):
            message = (
                f"url: plain HTTP would show the password to the network; serve --registry-insecure {host} allows it"
            )
            raise InvalidFieldsError([Detail("url", message)])
        self._registries[registry.id] = registry
        self._database.write(("INSERT OR REPLACE INTO registries VALUES (?, ?)", (registry.id, registry.to_json())))
        await self._database.committed()
        return registry


def registry_host(url: str) -> tuple[str, bool]:
    """The host, and perhaps port, that images of a registry begin with, and whether the URL says plain HTTP.

    Raises ValueError that says what is wrong with the URL.
    """
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("must have no spaces")
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https"):
        raise ValueError("must be https://HOST[:PORT]")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or a password; they have members of their own")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("must not have a query or a fragment")
    host = parts.netloc.lower()
    if host in _DOCKER_HUB_HOSTS:
        return DOCKER_HUB, parts.scheme == "http"
    dotted = host if "." in host or ":" in host or host == "localhost" else f"{host}:443"
    try:
        parsed = ImageReference.parse(f"{dotted}/x")
    except ImageError:
        raise ValueError("must be https://HOST[:PORT]") from None
    return parsed.registry, parts.scheme == "http"
