"""The least daemon: it runs one command for each connection, and nothing else.

A request is one line of JSON, `{"argv": [...], "env": {...}, "detach": bool}`; the answer is one line, `{"code": n,
"output": text}`. `{"import": name}`, `{"describe": true}` and `{"exit": n}` are answered by process 1 itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket


def run(listener: socket.socket, config: dict[str, Any]) -> None:
    """Serve one request after the other."""
    listener.setblocking(True)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        connection, _ = listener.accept()
        reap_orphans()
        with connection, connection.makefile("rwb") as stream:
            request = json.loads(stream.readline())
            stream.write(json.dumps(answer(request, config)).encode() + b"\n")


def reap_orphans() -> None:
    """Do what falls to process 1; between requests, every child is an orphan."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def answer(request: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Do what one request asks."""
    if "exit" in request:
        os._exit(request["exit"])
    if "raise" in request:
        raise RuntimeError(request["raise"])
    if "import" in request:
        try:
            __import__(request["import"])
        except ImportError as error:
            return {"code": 1, "output": str(error)}
        return {"code": 0, "output": ""}
    if "describe" in request:
        return {
            "pid": os.getpid(),
            "config": config,
            "environ": dict(os.environ),
            "path": sys.path,
            "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
            "arguments": sys.argv,
        }
    environment = {"PATH": os.defpath, **config["env_vars"], "HOME": "/root", **request.get("env", {})}
    try:
        done = subprocess.run(
            request["argv"],
            env=environment,
            cwd=request.get("cwd", "/"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=request.get("timeout", 60),
            start_new_session=True,
        )
    except OSError as error:
        return {"code": 127, "output": str(error)}
    return {"code": done.returncode, "output": done.stdout.decode(errors="replace")}
