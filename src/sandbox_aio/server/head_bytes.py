"""What h11 forgives in the bytes of a request's head and this server does not.

Whatever is refused here is read differently by different programs; a server between two of them must not choose.
"""

from __future__ import annotations

from typing import Final

from .errors import ApiError
from .limits import MAX_FIELDS, MAX_HEAD, MAX_TARGET

__all__ = ["check_head_bytes"]

CONTROLS: Final = bytes(code for code in (*range(0x20), 0x7F) if code != 0x09)


def check_head_bytes(head: bytes) -> None:
    """Check a head from its first byte to its empty line; raise ApiError 400, 414 or 431.

    Refused: a line that ends without CR, a CR or another control character within a line, a header continued on
    the next line; and what is longer than its bound, although it came in one piece.
    """
    if len(head) > MAX_HEAD:
        raise ApiError(431, "InvalidRequest", f"a request's head has at most {MAX_HEAD:,} bytes")
    if head.find(b"\r\n") > MAX_TARGET:
        raise ApiError(414, "InvalidRequest", f"a request line has at most {MAX_TARGET:,} bytes")
    text = head.replace(b"\r\n", b"")
    if len(text.translate(None, CONTROLS)) != len(text):
        raise ApiError(400, "InvalidRequest", "a control character in the head; its lines end with CR LF")
    if b"\n " in head or b"\n\t" in head:
        raise ApiError(400, "InvalidRequest", "a header is continued on the next line")
    if head.count(b"\n") > MAX_FIELDS + 2:
        raise ApiError(431, "InvalidRequest", f"a request has at most {MAX_FIELDS} headers")
