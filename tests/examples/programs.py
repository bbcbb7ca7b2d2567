"""The programs that the examples run: what `make build` builds, what `server.py` serves, what `train.py` trains."""

from __future__ import annotations

MAKEFILE = "build:\n\t@echo compiling\n\t@echo a warning >&2\n\t@echo linking\n"
BUILD_STDOUT = "compiling\nlinking\n"
BUILD_STDERR = "a warning\n"

SERVER = "import time\nprint('Ready', flush=True)\ntime.sleep(1000)\n"

TRAIN = """\
import sys, time
for step in range(100_000):
    with open(sys.argv[0] + ".log", "a") as log:
        print(step, file=log)
    time.sleep(0.01)
"""
"""Appends a line to `train.py.log`, or whatever it is called, a hundred times a second."""
