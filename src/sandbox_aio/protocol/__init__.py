"""The protocol without I/O, for every runtime (wire protocol, sections 1 to 4).

Four rules hold in this package, and tests keep them: nothing awaits, nothing reads a clock, nothing draws a random
number, nothing opens anything. What arrives goes in through `receive_bytes`, what must be sent comes out of
`bytes_to_send`, what happened comes out of `events`, and time is an argument.

A driver moves bytes and time. The text of `command` says what it has to do, and `sandbox_aio.drivers.command` is one.
"""

from __future__ import annotations
