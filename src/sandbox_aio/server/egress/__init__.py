"""The way out of a sandbox: a proxy that the server runs for it, with the sandbox's own rules."""

from __future__ import annotations

from .gateway import EgressGateway

__all__ = ["EgressGateway"]
