"""Frames to JSON text and back (wire protocol, section 3.3).

Output is nearly all of the traffic, so it has a path of its own in both directions; `msgspec`, if it is installed,
makes that path faster and changes nothing else. Everything that arrives is checked: what is not a frame of the
protocol raises `CodecError`, never a `KeyError` or a `UnicodeDecodeError`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.encoder import encode_basestring
from typing import Any

import attrs
import cattrs

from .frames import (
    LARGEST_INTEGER,
    UNKNOWN_OFFSET,
    ClientFrame,
    CloseStdin,
    ErrorReply,
    Execute,
    Exit,
    Input,
    Kill,
    Output,
    Reconnect,
    Resize,
    ServerFrame,
    Started,
    Stream,
)
from .utf8 import repair_surrogates

__all__ = [
    "CodecError",
    "decode_client_frame",
    "decode_server_frame",
    "encode_client_frame",
    "encode_output",
    "encode_server_frame",
]


class CodecError(ValueError):
    """A message is not a frame of the protocol. The text says what was wrong and shows the beginning of the message."""


_CLIENT_TYPES: dict[str, type[ClientFrame]] = {
    "execute": Execute,
    "reconnect": Reconnect,
    "input": Input,
    "close_stdin": CloseStdin,
    "kill": Kill,
    "resize": Resize,
}
_CLIENT_NAMES: dict[type, str] = {cls: name for name, cls in _CLIENT_TYPES.items()}
_DEFAULTS: dict[str, Mapping[str, Any]] = {
    "execute": {"command": None, "command_id": None},
}


# --- general path ----------------------------------------------------------------------------------------------------


def _shown(payload: bytes | memoryview) -> str:
    return repr(bytes(payload[:80])) + ("..." if len(payload) > 80 else "")


def _load(payload: bytes | memoryview) -> dict[str, Any]:
    try:
        message = json.loads(bytes(payload))
    except (ValueError, RecursionError) as exc:
        raise CodecError(f"a message is not JSON ({exc}): {_shown(payload)}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise CodecError(f"a message is not an object with a 'type': {_shown(payload)}")
    return message


def _flag(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise TypeError(f"expected bool, got {type(value).__name__}")
    return value


def _whole_number(value: Any, _: Any) -> int:
    if type(value) is not int or abs(value) > LARGEST_INTEGER:
        raise TypeError(f"expected an integer, got {value!r:.40}")
    return value


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or value != value or abs(value) > 2**53:
        raise TypeError(f"expected a number, got {value!r:.40}")
    return value  # type: ignore[no-any-return]


def _text(value: Any, _: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"expected str, got {type(value).__name__}")
    return repair_surrogates(value)


_converter = cattrs.Converter(detailed_validation=False)
_converter.register_structure_hook(str, _text)
_converter.register_structure_hook(bool, _flag)
_converter.register_structure_hook(int, _whole_number)
_converter.register_structure_hook(float, _number)


def decode_client_frame(payload: bytes | memoryview) -> ClientFrame | None:
    """Read what a client sent; None for a type that this version does not know, which is to be ignored.

    Raises:
        CodecError: not JSON, not an object, or a member of the wrong type.
    """
    message = _load(payload)
    kind = message["type"]
    cls = _CLIENT_TYPES.get(kind)
    if cls is None:
        return None
    members = {**_DEFAULTS.get(kind, {}), **{name: value for name, value in message.items() if value is not None}}
    try:
        return _converter.structure(members, cls)
    except KeyError as exc:
        raise CodecError(f"a {kind!r} message lacks {exc}: {_shown(payload)}") from None
    except (TypeError, ValueError, AttributeError) as exc:
        raise CodecError(f"a {kind!r} message is malformed ({exc}): {_shown(payload)}") from None


def encode_client_frame(frame: ClientFrame) -> str:
    """Write a client's frame.

    Optional members that are empty, and flags that are false, are left out as section 3.3 has it.
    """
    message: dict[str, Any] = {"type": _CLIENT_NAMES[type(frame)]}
    if type(frame) is Execute:
        message.update(_execute_members(frame))
    else:
        message.update(attrs.asdict(frame))
    return json.dumps(message, separators=(",", ":"))


_ALWAYS = (
    "command",
    "timeout_seconds",
    "shell",
    "idle_timeout_seconds",
    "kill_on_disconnect",
    "ttl_seconds",
    "command_id",
)
_IF_GIVEN = ("env", "cwd", "run_config", "close_stdin", "pty")


def _execute_members(frame: Execute) -> dict[str, Any]:
    members = {name: getattr(frame, name) for name in _ALWAYS if getattr(frame, name) is not None}
    for name in _IF_GIVEN:
        value = getattr(frame, name)
        if value:
            members[name] = dict(value) if isinstance(value, Mapping) else value
    return members


def _integer(message: Mapping[str, Any], name: str, payload: bytes | memoryview) -> int:
    value = message.get(name)
    if type(value) is not int or abs(value) > LARGEST_INTEGER:
        raise CodecError(f"a {message['type']!r} message has no integer {name!r}: {_shown(payload)}")
    return value


def _string(message: Mapping[str, Any], name: str, payload: bytes | memoryview) -> str:
    value = message.get(name)
    if type(value) is not str:
        raise CodecError(f"a {message['type']!r} message has no text {name!r}: {_shown(payload)}")
    return repair_surrogates(value)


def _decode_server_slowly(payload: bytes | memoryview) -> ServerFrame | None:
    message = _load(payload)
    kind = message["type"]
    if kind == "stdout" or kind == "stderr":
        offset = UNKNOWN_OFFSET if message.get("offset") is None else _integer(message, "offset", payload)
        if offset < UNKNOWN_OFFSET:
            raise CodecError(f"an offset is negative: {_shown(payload)}")
        return Output(kind, _string(message, "data", payload), offset)
    if kind == "started":
        pid = message.get("pid")
        return Started(command_id=_string(message, "command_id", payload), pid=pid if type(pid) is int else None)
    if kind == "exit":
        return Exit(exit_code=_integer(message, "exit_code", payload))
    if kind == "error":
        error, error_type = message.get("error"), message.get("error_type")
        return ErrorReply(
            error=repair_surrogates(error) if type(error) is str else "the daemon gave no reason",
            error_type=error_type if type(error_type) is str and error_type else "CommandError",
        )
    return None


def encode_server_frame(frame: ServerFrame) -> bytes:
    """Write a daemon's frame."""
    if type(frame) is Output:
        return encode_output(frame.stream, frame.data.encode(), frame.offset)
    if type(frame) is Started:
        return b'{"type":"started","command_id":%b,"pid":%d}' % (_dumps(frame.command_id), frame.pid or 0)
    if type(frame) is Exit:
        return b'{"type":"exit","exit_code":%d}' % frame.exit_code
    assert type(frame) is ErrorReply
    return b'{"type":"error","error":%b,"error_type":%b}' % (_dumps(frame.error), _dumps(frame.error_type))


def _dumps(text: str) -> bytes:
    return json.dumps(text).encode()


# --- the path of output ----------------------------------------------------------------------------------------------

_OPENING: dict[Stream, bytes] = {
    "stdout": b'{"type":"stdout","data":',
    "stderr": b'{"type":"stderr","data":',
}
_OPENING_OUT = '{"type":"stdout","data":"'
_OPENING_ERR = '{"type":"stderr","data":"'
_AFTER_OPENING = len(_OPENING_OUT)
_AFTER_DATA = ',"offset":'
_MEMBER = len(_AFTER_DATA)
_MAX_DIGITS = 18


def _quote_stdlib(data: bytes) -> bytes:
    return encode_basestring(str(data, "utf-8")).encode()


def _is_offset(number: str) -> bool:
    """Whether this is a number as JSON writes it, and of a size that needs no further look."""
    if not number.isdecimal() or not number.isascii() or len(number) > _MAX_DIGITS:
        return False
    return number[0] != "0" or number == "0"


def _decode_by_position(payload: bytes | memoryview) -> Output | None:
    """Take an `Output` apart by position if it is laid out as `encode_output` does; None for anything else."""
    try:
        text = str(payload, "utf-8")
        if text.startswith(_OPENING_OUT):
            stream: Stream = "stdout"
        elif text.startswith(_OPENING_ERR):
            stream = "stderr"
        else:
            return None
        data, end = scanstring(text, _AFTER_OPENING)
    except ValueError:  # the general path says what is wrong
        return None
    number = text[end + _MEMBER : -1]
    if not text.startswith(_AFTER_DATA, end) or not _is_offset(number) or text[-1] != "}":
        return None
    return Output(stream, data if data.isascii() else repair_surrogates(data), int(number))


try:
    from .codec_msgspec import decode_output as _decode_output
    from .codec_msgspec import quote as _quote
except ModuleNotFoundError:  # the accelerator is optional
    _decode_output, _quote = _decode_by_position, _quote_stdlib


def decode_server_frame(payload: bytes | memoryview) -> ServerFrame | None:
    """Read what a daemon sent; None for a type that this version does not know, which is to be ignored.

    Lone surrogates, if the peer put them there, are replaced.

    Raises:
        CodecError: not JSON, not an object, or a member that is missing or of the wrong type.
    """
    return _decode_output(payload) or _decode_server_slowly(payload)


def encode_output(stream: Stream, data: bytes, offset: int) -> bytes:
    """Write an `Output` frame.

    `data` is valid UTF-8 of whole characters; `offset` is the position of its first byte.
    """
    return b'%b%b,"offset":%d}' % (_OPENING[stream], _quote(data), offset)
