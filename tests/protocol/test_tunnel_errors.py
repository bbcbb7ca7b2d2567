"""`protocol/tunnel_errors.py`: wire protocol, sections 5.4 and 5.6."""

from __future__ import annotations

import pytest

from sandbox_aio.errors import (
    ResourceNotFoundError,
    SandboxConnectionError,
    TunnelConnectionRefusedError,
    TunnelError,
    TunnelPortNotAllowedError,
    TunnelUnsupportedVersionError,
)
from sandbox_aio.protocol.tunnel_errors import error_of_loss, error_of_status
from sandbox_aio.protocol.tunnel_preamble import TunnelTarget
from sandbox_aio.protocol.websocket import Refused

PORT = TunnelTarget(port=5432)
PATH = TunnelTarget(path="/run/s")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (1, TunnelPortNotAllowedError, "does not let port 5432"),
        (2, TunnelConnectionRefusedError, "at port 5432"),
        (3, TunnelUnsupportedVersionError, "this version"),
        (9, TunnelError, "unknown status 9"),
        (None, TunnelError, "broke the connection to port 5432 off"),
    ],
)
def test_each_status_has_its_error(status: int | None, kind: type[TunnelError], words: str) -> None:
    error = error_of_status(status, PORT)
    assert type(error) is kind
    assert words in str(error)
    assert getattr(error, "port", 5432) == 5432


def test_a_server_without_unix_sockets_is_named_as_such() -> None:
    assert "unix sockets" in str(error_of_status(3, PATH))


def test_a_loss_says_why_and_a_refusal_keeps_its_type() -> None:
    assert "gone" in str(error_of_loss("gone", None))
    assert type(error_of_loss("gone", None)) is SandboxConnectionError
    refused = Refused(status=404, headers=(), body=b"")
    assert isinstance(error_of_loss("refused", refused), ResourceNotFoundError)
