"""The async client. Import its classes from `sandbox_aio`."""

from __future__ import annotations
