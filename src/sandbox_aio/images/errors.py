"""What can go wrong with an image."""

from __future__ import annotations

from typing import Literal

__all__ = ["ImageError", "ImageErrorKind"]

ImageErrorKind = Literal[
    "ImageReference",
    "ImageNotFound",
    "ImageUnauthorized",
    "ImagePull",
    "ImageUnpack",
    "ImageTooLarge",
    "ImagePlatform",
    "ImageExport",
]


class ImageError(Exception):
    """The message says what was wrong, with which image, and what to do; `kind` is the API's word for it."""

    def __init__(self, message: str, *, kind: ImageErrorKind) -> None:
        super().__init__(message)
        self.kind: ImageErrorKind = kind
