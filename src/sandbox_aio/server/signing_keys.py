"""The keys that service tokens are signed with: Ed25519, kept in a file, replaced from time to time."""

from __future__ import annotations

import base64
import json
import secrets
from typing import TYPE_CHECKING, Any, Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .grants import write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["KeyRing", "PublicKey", "SigningKey"]

ROTATE_AFTER: Final = 30 * 24 * 3600.0
"""Seconds that a key signs, before another takes its place."""

MAX_KEYS: Final = 100
"""Keys at once. Only who rotates by hand more often than tokens expire meets this; the oldest tokens end then."""


@attrs.frozen
class PublicKey:
    """What tokens are verified with."""

    id: str
    key: Ed25519PublicKey
    retired_at: float | None = None
    """When it signed last, seconds since the epoch; None for the one that signs."""


@attrs.frozen
class SigningKey:
    """What tokens are signed with."""

    id: str
    key: Ed25519PrivateKey = attrs.field(repr=False)
    created_at: float


class KeyRing:
    """One key that signs, and the public halves of those before it, as long as a token of theirs may be valid."""

    def __init__(self, path: Path, *, lifetime: float, now: Callable[[], float]) -> None:
        """Read the keys, or make the first. `lifetime`: seconds that a token is valid at most.

        Raises OSError, or ValueError for a file that is not ours: making new keys would end every token.
        """
        self._path = path
        self._lifetime = lifetime
        self._now = now
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._signing: SigningKey
        self._retired: Sequence[PublicKey] = ()
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            self._store(self._generate(), ())
        else:
            self._signing, self._retired = _parse(data, path)

    def signing(self) -> SigningKey:
        """The key to sign with now; a new one if the last has signed for long enough."""
        age = self._now() - self._signing.created_at
        if age >= ROTATE_AFTER:
            self.rotate()
        return self._signing

    def rotate(self) -> None:
        """Sign with a new key from now on. Tokens of the old ones stay valid."""
        old = PublicKey(self._signing.id, self._signing.key.public_key(), self._now())
        self._store(self._generate(), [*self._valid(), old][-(MAX_KEYS - 1) :])

    def public(self) -> list[PublicKey]:
        """Every key of which a token may be valid, the newest first."""
        return [PublicKey(self._signing.id, self._signing.key.public_key()), *reversed(self._valid())]

    def find(self, id: str) -> Ed25519PublicKey | None:
        return next((known.key for known in self.public() if known.id == id), None)

    def _valid(self) -> list[PublicKey]:
        oldest = self._now() - self._lifetime
        return [known for known in self._retired if known.retired_at is not None and known.retired_at >= oldest]

    def _generate(self) -> SigningKey:
        return SigningKey(secrets.token_urlsafe(12), Ed25519PrivateKey.generate(), self._now())

    def _store(self, signing: SigningKey, retired: Sequence[PublicKey]) -> None:
        document = {
            "signing": {
                "kid": signing.id,
                "private": _text(signing.key.private_bytes_raw()),
                "created_at": signing.created_at,
            },
            "retired": [
                {"kid": known.id, "public": _text(known.key.public_bytes_raw()), "retired_at": known.retired_at}
                for known in retired
            ],
        }
        write_private(self._path, json.dumps(document).encode())
        self._signing, self._retired = signing, tuple(retired)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _parse(data: bytes, path: Path) -> tuple[SigningKey, Sequence[PublicKey]]:
    try:
        document: dict[str, Any] = json.loads(data)
        one = document["signing"]
        private = Ed25519PrivateKey.from_private_bytes(_raw(one["private"]))
        signing = SigningKey(str(one["kid"]), private, float(one["created_at"]))
        retired = [
            PublicKey(
                str(old["kid"]), Ed25519PublicKey.from_public_bytes(_raw(old["public"])), float(old["retired_at"])
            )
            for old in document["retired"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of signing keys ({error}); restore it, or remove it") from error
    return signing, retired
