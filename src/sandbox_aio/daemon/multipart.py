"""The one file of a `multipart/form-data` body, in pieces as they come (wire protocol, section 4.1)."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .faults import Fault

__all__ = ["FormFile"]

_MAX_HEADERS = 8
_MAX_BOUNDARY = 256
_FIELD = b"file"

parse_options_header(b'multipart/form-data; boundary="warm"')  # it imports on its first use, when it is too late


class FormFile:
    """Reads a form, and yields what belongs to the part named `file`. Other parts are passed over."""

    def __init__(self, content_type: bytes) -> None:
        """Raises Fault: 400 `WriteError`, if this is not the content type of a form."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not 0 < len(boundary) <= _MAX_BOUNDARY:
            raise Fault(400, "WriteError", "an upload is a multipart/form-data body with one part named 'file'")
        self._pieces: list[bytes] = []
        self._header = b""
        self._value = b""
        self._inside = False
        self._found = False
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_header,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_part_data": self._add_data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
            max_header_count=_MAX_HEADERS,
        )

    def feed(self, data: bytes) -> list[bytes]:
        """Take a piece of the body; return pieces of the file.

        Raises:
            Fault: 400 `WriteError`: this is not a form.
        """
        try:
            self._parser.write(data)
        except FormParserError as exc:
            raise Fault(400, "WriteError", f"the form is malformed: {exc}") from None
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> None:
        """The body has ended.

        Raises:
            Fault: 400 `WriteError`: the form is cut off, or has no file.
        """
        if not self._complete:
            raise Fault(400, "WriteError", "the form is cut off")
        if not self._found:
            raise Fault(400, "WriteError", "the form has no part named 'file'")

    def _begin(self) -> None:
        self._header = self._value = b""
        self._inside = False

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition" and not self._found:
            _, options = parse_options_header(self._value)
            self._inside = self._found = options.get(b"name") == _FIELD
        self._header = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        self._inside = False

    def _finish(self) -> None:
        self._complete = True
