"""One sandbox, as the zygote that forked it knows it."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
from typing import Any, Final

import attrs

from . import control, freezing, syscalls
from .plan import BootPlan, Preparation

__all__ = ["LayerError", "SandboxProcess"]


FREEZE_LIMIT_S: Final = 10.0
"""How long a sandbox may stand still for a capture."""


class LayerError(OSError):
    """A layer's ids cannot be mapped."""

    def __init__(self, error: OSError, layer: str) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        self.layer = layer


@attrs.define(eq=False, kw_only=True)
class SandboxProcess:
    """One sandbox, from the fork of its usher until its init is reaped. It may wait a long time for its plan."""

    preparation: Preparation
    channel: socket.socket
    usher: int
    usher_fd: int | None
    """None once the usher is reaped."""
    init: int | None = None
    init_fd: int | None = None
    plan: BootPlan | None = None
    seq: int | None = None
    """Of the request that starts it."""
    deadline: float
    """When a step that is under way must be done."""
    handover: tuple[int, ...] = ()
    """The listener and the configuration, until the init has them."""
    egress: int | None = None
    """A socket that listens in the sandbox's network. Every server is given it anew; it is closed with the sandbox."""
    running: bool = False
    ending: bool = False
    """It is being killed."""
    stopped: list[int] = attrs.field(factory=list)
    """Its processes that stand still for a capture, until `thaw_at`."""
    thaw_at: float = math.inf
    kills: list[int] = attrs.field(factory=list)
    """The requests to kill it that are to be answered when it is gone."""
    failure: dict[str, Any] | None = None
    """The first thing that went wrong."""

    def map_ids(self) -> None:
        """Give the usher's user namespace its ids, and pass the usher the layers as they look through those ids.

        Raises LayerError for a layer that cannot be mapped, OSError for everything else.
        """
        trees: list[int] = []
        self.preparation.ids.write(str(self.usher))
        namespace = os.open(f"/proc/{self.usher}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for layer in self.preparation.trees:
                try:
                    trees.append(syscalls.detached_clone(layer.path, userns_fd=namespace if layer.mapped else None))
                except OSError as error:
                    if layer.mapped:
                        raise LayerError(error, layer.path) from error
                    raise
            control.send(self.channel, {"mapped": True}, trees)
        finally:
            for descriptor in (namespace, *trees):
                os.close(descriptor)

    def hand_over(self, plan: BootPlan) -> None:
        """Tell the init which sandbox it is."""
        message = {"plan": True, "id": plan.id, "hostname": plan.hostname, "with_daemon": plan.with_daemon}
        with contextlib.suppress(OSError):  # The init is dead already; its pidfd says so next.
            control.send(self.channel, message, list(self.handover))
        self.close_handover()

    def freeze(self, now: float) -> None:
        """Stop all of its processes for a moment, `FREEZE_LIMIT_S` at the most. Raises FreezeError."""
        if self.init is None or not self.running or self.stopped:
            raise freezing.FreezeError("it does not run, or stands still already")
        self.stopped = freezing.freeze(self.init)
        self.thaw_at = now + FREEZE_LIMIT_S

    def thaw(self) -> bool:
        """Let them go on; tell whether they stood still until now."""
        stopped, self.stopped, self.thaw_at = self.stopped, [], math.inf
        freezing.thaw(stopped)
        return bool(stopped)

    def close_descriptors(self) -> None:
        """Close what we hold of a sandbox that is gone, its network among it."""
        self.close_handover()
        if self.egress is not None:
            os.close(self.egress)
            self.egress = None

    def close_handover(self) -> None:
        """Close the descriptors that the init has, or will never have."""
        for descriptor in self.handover:
            os.close(descriptor)
        self.handover = ()

    def is_alive(self) -> bool:
        """Tell whether the process that matters now, usher or init, has not ended."""
        descriptor = self.usher_fd if self.usher_fd is not None else self.init_fd
        assert descriptor is not None
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return not ended.poll(0) and not self.ending

    def has_message(self) -> bool:
        """Tell whether the usher or the init has said something that was not read yet."""
        try:
            return bool(self.channel.recv(1, socket.MSG_PEEK))
        except OSError:
            return False
