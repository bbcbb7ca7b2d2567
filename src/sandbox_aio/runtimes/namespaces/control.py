"""The messages between the server and the zygote, and between the zygote and a child on its way to become a daemon.

A message is one JSON object in one datagram of a unix SOCK_SEQPACKET socket, at most `MAX_MESSAGE` bytes, with at most
`MAX_DESCRIPTORS` descriptors beside it. The kernel keeps datagrams whole and in order, so there is no framing.
"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any, Final

__all__ = ["MAX_DESCRIPTORS", "MAX_MESSAGE", "MessageError", "receive", "send"]

MAX_MESSAGE: Final = 64 * 1024
MAX_DESCRIPTORS: Final = 32

Message = dict[str, Any]


class MessageError(Exception):
    """The peer sent something that is not a message. Its descriptors are closed already."""


def send(channel: socket.socket, message: Message, descriptors: list[int] | None = None) -> None:
    """Send one message. Raises OSError when the peer is gone, MessageError when the message is too long."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise MessageError(f"a control message of {len(data)} bytes is over the limit of {MAX_MESSAGE}")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """Return the next message and its descriptors, which are close-on-exec and now the caller's; None at end of file.

    Raises MessageError for anything that is not a JSON object, BlockingIOError on a non-blocking socket with nothing
    to read.
    """
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = channel.recvmsg(MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    if not data and not descriptors:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise MessageError(f"a control message is over {MAX_MESSAGE} bytes or {MAX_DESCRIPTORS} descriptors")
        try:
            message = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"a control message is not JSON: {error}") from error
        if not isinstance(message, dict):
            raise MessageError(f"a control message is not an object but {type(message).__name__}")
    except MessageError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, list(descriptors)
