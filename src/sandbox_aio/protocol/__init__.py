"""The protocol without I/O, for every runtime (wire protocol, sections 3 to 6).

Four rules hold in this package, and tests keep them: nothing awaits, nothing reads a clock, nothing draws a random
number, nothing opens anything. What arrives goes in through `receive_bytes`, what must be sent comes out of
`bytes_to_send`, what happened comes out of `events`, and time is an argument.

A driver moves bytes and time. `docs/how-to/embed-the-core.md` writes one.
"""

from __future__ import annotations
