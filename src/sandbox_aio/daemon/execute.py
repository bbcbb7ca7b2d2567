"""`POST /execute`: a command whose output comes in one piece (wire protocol, section 3.1)."""

from __future__ import annotations

import asyncio
import json
import shlex
import uuid
from typing import TYPE_CHECKING, Any

from ..protocol.codec import CodecError, decode_client_frame
from ..protocol.frames import ErrorReply, Execute, Exit
from .faults import Fault

if TYPE_CHECKING:
    from ..protocol.frames import Stream
    from ..protocol.session import CommandSession
    from .commands import CommandHub
    from .http import Exchange
    from .settings import DaemonLimits

__all__ = ["execute"]

_OWN_TIMEOUT = 60
_TAKE_BYTES = 1 << 20


class _Collector:
    """A reader that takes all output at once, up to a limit."""

    def __init__(self, session: CommandSession, limit: int) -> None:
        self._session = session
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self.attachment = session.attach(0, 0, self._loop.time())
        self.output: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.over: asyncio.Future[None] = self._loop.create_future()

    def flush(self) -> None:
        """Take what is there; kill a command that says too much."""
        while pieces := self.attachment.take(_TAKE_BYTES, self._loop.time()):
            for stream, _, data in pieces:
                self.output[stream] += data
        if sum(map(len, self.output.values())) > self._limit and not self.over.done():
            text = f"the command wrote more than {self._limit} bytes and was killed: run it over a websocket"
            self.over.set_exception(Fault(400, "CommandError", text))
        elif self._session.outcome is not None and not self.over.done():
            self.over.set_result(None)


def _read(body: dict[str, Any]) -> Execute:
    """Return what the body asks for: `command` as text or as a list of arguments, `timeout` or `timeout_seconds`."""
    command = body.get("command")
    if isinstance(command, list) and command and all(isinstance(argument, str) for argument in command):
        command = "exec " + shlex.join(command)
    if not isinstance(command, str):
        raise Fault(400, "CommandError", "command must be a text, or a list of texts")
    timeout = body.get("timeout_seconds", body.get("timeout", _OWN_TIMEOUT))
    members = {name: body[name] for name in ("shell", "env", "cwd", "run_config") if body.get(name) is not None}
    members |= {"command": command, "timeout_seconds": timeout, "command_id": uuid.uuid4().hex}
    members |= {"type": "execute", "close_stdin": True, "kill_on_disconnect": True, "ttl_seconds": 1}
    try:
        frame = decode_client_frame(json.dumps(members).encode())
    except CodecError as exc:
        raise Fault(400, "CommandError", str(exc)) from None
    assert isinstance(frame, Execute)
    return frame


async def execute(hub: CommandHub, limits: DaemonLimits, exchange: Exchange) -> None:
    """Run a command to its end and reply with its output.

    Cancellation: the command is killed, since nobody can learn of it.

    Raises:
        Fault: the command could not start, timed out, or wrote more than `collected_bytes`.
    """
    request = _read(await exchange.json(limits.json_bytes))
    if (refusal := hub.table.refusal(request)) is not None:
        raise Fault(400, refusal.error_type, refusal.error)
    loop = asyncio.get_running_loop()
    session = hub.table.start(request, fallback_id="", now=loop.time())
    collector = _Collector(session, limits.collected_bytes)
    command = hub.listen(session, collector)
    try:
        command.update()
        await collector.over
    finally:
        command.listeners.discard(collector)
        collector.attachment.detach(loop.time())
        command.update()
        hub.table.forget(session)
    outcome = session.outcome
    if isinstance(outcome, ErrorReply):
        raise Fault(400, outcome.error_type, outcome.error)
    assert isinstance(outcome, Exit)
    reply: dict[str, object] = {stream: data.decode() for stream, data in collector.output.items()}
    await exchange.reply(200, reply | {"exit_code": outcome.exit_code})
