"""What the control plane sends, as JSON objects. Wire protocol, sections 1.6, 1.8, 1.10 and 1.11."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from .registries import ImageRegistry
    from .sandbox import Sandbox
    from .snapshot import Snapshot

__all__ = ["registry", "run_config", "sandbox", "sandbox_status", "snapshot", "timestamp"]

Json = dict[str, Any]


def timestamp(moment: datetime) -> str:
    """RFC 3339, UTC, always six digits of a second: what every client can parse, and sorts as text."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def sandbox(record: Sandbox, *, origin: str) -> Json:
    """The sandbox object. `origin` is how the client reaches this server, such as `https://sandboxes.example`."""
    settings = record.settings
    millicores = settings.cpu_millicores
    return {
        "id": record.id,
        "name": record.name,
        "status": record.status,
        "status_message": record.failure.message if record.failure else None,
        "dataplane_url": f"{origin}/api/v2/sandboxes/{record.id}",
        "created_at": timestamp(record.created_at),
        "updated_at": timestamp(record.updated_at),
        "stopped_at": timestamp(record.stopped_at) if record.stopped_at else None,
        "idle_ttl_seconds": settings.idle_ttl_seconds,
        "delete_after_stop_seconds": settings.delete_after_stop_seconds,
        "snapshot_id": record.snapshot_id,
        "vcpus": _vcpus(millicores),
        "cpu_millicores": millicores,
        "mem_bytes": settings.mem_bytes,
        "fs_capacity_bytes": settings.fs_capacity_bytes,
        "persistent": True,
        "preserve_memory_on_stop": False,
        "labels": dict(settings.labels),
        "proxy_config": settings.proxy_config.shown(),
        "run_config": run_config(
            settings.run_config.user, settings.run_config.work_dir, dict(settings.run_config.env_vars)
        ),
    }


def _vcpus(millicores: int | None) -> float | int | None:
    if millicores is None:
        return None
    return millicores / 1000 if millicores % 1000 else millicores // 1000


def sandbox_status(record: Sandbox) -> Json:
    return {"status": record.status, "status_message": record.failure.message if record.failure else None}


def snapshot(record: Snapshot, tags: Sequence[str]) -> Json:
    """The snapshot object."""
    config = record.run_config if record.status == "ready" else record.wanted
    return {
        "id": record.id,
        "name": record.name,
        "status": record.status,
        "status_message": record.status_message,
        "fs_capacity_bytes": record.fs_capacity_bytes,
        "fs_used_bytes": record.fs_used_bytes,
        "docker_image": record.docker_image,
        "image_digest": record.image_digest,
        "source_sandbox_id": record.source_sandbox_id,
        "registry_id": record.registry_id,
        "description": record.description,
        "labels": dict(record.labels),
        "created_at": timestamp(record.created_at),
        "updated_at": timestamp(record.updated_at),
        "tags": list(tags),
        "run_config": run_config(config.user, config.work_dir, dict(config.env_vars)),
    }


def registry(record: ImageRegistry) -> Json:
    """The registry object, which never holds a secret."""
    return {
        "id": record.id,
        "name": record.name,
        "url": record.url,
        "auth_type": "DOCKER_CONFIG",
        "aws_role_arn": None,
        "provider": record.provider,
        "repository_search_mode": record.repository_search_mode,
        "created_at": timestamp(record.created_at),
        "created_by": None,
        "updated_at": timestamp(record.updated_at),
        "updated_by": None,
    }


def run_config(user: str | None, work_dir: str | None, env_vars: dict[str, str]) -> Json | None:
    """The set members only; None when there are none."""
    members: Json = {"user": user, "work_dir": work_dir, "env_vars": env_vars or None}
    return {name: value for name, value in members.items() if value is not None} or None
