"""Reading the headers of an archive that comes from strangers, by the standard library's `tarfile`."""

from __future__ import annotations

import sys
import tarfile
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from .errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BoundedInfo", "HeaderStream", "Seekable"]

MAX_HEADER: Final = 1 << 20
"""Bytes of one extended header: long names, attributes."""
MAX_HEADERS: Final = 8 << 20
"""Bytes of all headers of one entry: the map of a sparse file may have any number."""
_BROKEN_HEADERS: Final = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]


class Seekable(Protocol):
    """What archives are read from."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, position: int, /) -> int: ...

    def tell(self) -> int: ...


class BoundedInfo(tarfile.TarInfo):
    """A header, of which the extensions are read into memory: so they have a bound.

    A header that cannot be read is an error: `tarfile` takes it for the end, and what is behind it would be lost.
    """

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Self:
        """Read the next header. Raises ImageError."""
        try:
            return super().fromtarfile(tarfile)
        except _BROKEN_HEADERS as error:
            if tarfile.offset == 0:
                raise  # It is no archive at all.
            raise ImageError(f"a header in it is broken: {error}", kind="ImageUnpack") from error

    def _proc_member(self, archive: Any) -> Any:
        extensions = (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if self.size < 0 or (self.type in extensions and self.size > MAX_HEADER):
            raise ImageError(f"a header announces {self.size:,} bytes", kind="ImageUnpack")
        return super()._proc_member(archive)  # type: ignore[misc]  # the one place where a header meets its size


class HeaderStream:
    """The source as `tarfile` sees it: so that what it keeps of one entry has a bound."""

    def __init__(self, source: Seekable) -> None:
        self._source = source
        self._left = MAX_HEADERS
        self.tell: Callable[[], int] = source.tell
        self.seek: Callable[[int], int] = source.seek

    def read(self, size: int) -> bytes:
        """Return so many bytes. Raises ImageError when the headers of an entry are too long."""
        self._left -= size
        if self._left < 0:
            raise ImageError(f"the headers of an entry are over {MAX_HEADERS:,} bytes", kind="ImageUnpack")
        return self._source.read(size)

    def next_entry(self) -> None:
        """What is read next are the headers of an entry."""
        self._left = MAX_HEADERS

    def in_content(self) -> None:
        """What is read next is content, which has bounds of its own."""
        self._left = sys.maxsize
