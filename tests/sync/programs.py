"""Runs a small program in an interpreter of its own: what is tested may hang, be killed by a signal, or fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import atexit, os, signal, sys, threading, time
from sandbox_aio.errors import *
from tests.sync.facade import SandboxClient

def when(condition, action, *args):
    '''Do something from another thread as soon as a condition holds.'''
    def wait():
        deadline = time.monotonic() + 10
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        action(*args)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def say(*words):
    print(*words, flush=True)

def end():
    say("end", time.monotonic())

"""


@attrs.frozen(kw_only=True)
class Outcome:
    """How a program ended."""

    said: list[str]
    errors: str
    exit_code: int
    exit_seconds: float
    """From its call of `end()` to the end of the process."""


def run_program(code: str, *, timeout: float = 20) -> Outcome:
    """Run a program after `PRELUDE`, with all warnings shown."""
    program = PRELUDE + textwrap.dedent(code)
    command = [sys.executable, "-W", "always", "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=timeout, check=False
    )
    now = time.monotonic()
    said = done.stdout.splitlines()
    ended = [float(line.split()[1]) for line in said if line.startswith("end ")]
    return Outcome(
        said=[line for line in said if not line.startswith("end ")],
        errors=done.stderr,
        exit_code=done.returncode,
        exit_seconds=now - ended[-1] if ended else 0.0,
    )
