"""Paths as clients write them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .faults import Fault

if TYPE_CHECKING:
    from .settings import DaemonSettings

__all__ = ["resolve"]


def resolve(settings: DaemonSettings, path: object, error: str) -> str:
    """Return an absolute path. A relative one is relative to the files' root, or without such a directory to the work
    directory.

    Raises:
        Fault: 400, with `error` as its type: there is no path, it is empty, or it holds a NUL.
    """
    if not isinstance(path, str) or not path:
        raise Fault(400, error, "a path is needed")
    if "\0" in path:
        raise Fault(400, error, "a path cannot hold a NUL character")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise Fault(400, error, "the path is not valid text") from None
    root = settings.files_root if os.path.isdir(settings.files_root) else settings.work_dir
    return os.path.join("/", root, path)
