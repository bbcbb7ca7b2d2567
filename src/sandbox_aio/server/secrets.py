"""What the server has to give back to others, and nobody may read in its files: sealed with a key beside them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .grants import write_private

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SecretBox", "SecretError"]

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12


class SecretError(Exception):
    """A secret cannot be opened; the message says what to do."""


class SecretBox:
    """Seals secrets with AES-256-GCM. The key is in the file at `path`, mode 0600; None: one that ends with the server.

    It keeps a copy of the database, or a backup of it, from telling secrets; not who can read the key's file too.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the key, or make the first. Raises OSError, and ValueError for a file that is not ours: with a new key
        no secret could be opened any more.
        """
        key = AESGCM.generate_key(8 * KEY_BYTES) if path is None else _load(path)
        self._cipher = AESGCM(key)

    def seal(self, secret: bytes, owner: str) -> bytes:
        """The secret as it may be written down. It opens for the same `owner` alone."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, owner.encode())

    def open(self, sealed: bytes, owner: str) -> bytes:
        """The secret again. Raises SecretError when it was sealed with another key or for another owner."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode())
        except (InvalidTag, ValueError):
            raise SecretError(
                "it was sealed with another key than the one in the state directory; give it anew"
            ) from None


def _load(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = AESGCM.generate_key(8 * KEY_BYTES)
        write_private(path, key)
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} is not a key for secrets: {len(key)} bytes and not {KEY_BYTES}; restore it")
    return key
