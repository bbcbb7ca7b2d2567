"""One line for each request out of a sandbox, on the logger `sandbox_aio.egress`.

It holds the host and never the rest of the URL, no header and no body: any of these may hold a secret.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import attrs

__all__ = ["RequestRecord", "logger"]

logger: logging.Logger = logging.getLogger("sandbox_aio.egress")


@attrs.define(kw_only=True)
class RequestRecord:
    """What is known of one request; `write` says it. Sizes in bytes, the duration in seconds."""

    sandbox_id: str
    method: str = "?"
    host: str = "?"
    port: int = 0
    verdict: str = "failed"
    rule: str = "-"
    injected: str = "-"
    """The rule by which headers were added."""
    sent: int = 0
    received: int = 0
    _began: float = attrs.field(init=False, factory=time.monotonic)

    def write(self) -> None:
        """Log it."""
        members: dict[str, Any] = {
            "sandbox": self.sandbox_id,
            "method": self.method,
            "host": self.host,
            "port": self.port,
            "verdict": self.verdict,
            "rule": self.rule,
            "injected": self.injected,
            "sent": self.sent,
            "received": self.received,
            "seconds": f"{time.monotonic() - self._began:.3f}",
        }
        logger.info("%s", " ".join(f"{name}={value}" for name, value in members.items()), extra={"egress": members})
