"""Image registries that the service has credentials for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..protocol.registry_requests import (
    RegistryFilter,
    RegistryWish,
    create_registry,
    delete_registry,
    get_registry,
    update_registry,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from ..models import Registry, RegistryPage
    from .service import Service

__all__ = ["AsyncRegistries"]


class AsyncRegistries:
    """Credentials for image registries, which snapshots of private images are made with.

    ::

        registry = await client.registries.create(
            name="internal", url="registry.example.com", username="robot", password=password
        )
        await client.create_snapshot("app", "registry.example.com/app:1", 2 * 1024**3, registry_id=registry.id)

    The service keeps what it is given here, and never tells it again.
    """

    def __init__(self, service: Service) -> None:
        """Used by `AsyncSandboxClient.registries`."""
        self._service = service

    async def create(
        self,
        *,
        name: str,
        url: str,
        auth_type: Literal["DOCKER_CONFIG", "AWS_ROLE"] | None = None,
        aws_role_arn: str | None = None,
        username: str | None = None,
        password: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Registry:
        """Give the service credentials for a registry.

        Args:
            name: Unique among your registries.
            url: Where it is, such as `registry.example.com:5000`.
            auth_type: `DOCKER_CONFIG`, the default, for `username` and `password`. `AWS_ROLE`, for `aws_role_arn`, is
                not for every service.
            password: Or a token, as the registry has it.

        Raises:
            ValueError: Name or URL are empty.
            ResourceAlreadyExistsError: The name is taken.
            ValidationError: The service does not take an argument; `field` says which.
        """
        wish = RegistryWish(
            name=name,
            url=url,
            auth_type=auth_type,
            aws_role_arn=aws_role_arn,
            username=username,
            password=password,
        )
        return await self._service.call(lambda control: create_registry(control, wish), headers)

    async def retrieve(self, name: str, *, headers: Mapping[str, str] | None = None) -> Registry:
        """Get a registry by its name.

        Raises:
            ResourceNotFoundError: There is no such registry.
        """
        return await self._service.call(lambda control: get_registry(control, name), headers)

    async def update(
        self,
        path_name: str,
        *,
        auth_type: Literal["DOCKER_CONFIG", "AWS_ROLE"] | None = None,
        aws_role_arn: str | None = None,
        body_name: str | None = None,
        password: str | None = None,
        url: str | None = None,
        username: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Registry:
        """Change what is given of the registry called `path_name`; None leaves a thing as it is.

        Args:
            body_name: What it is called from now on.

        Raises:
            ResourceNotFoundError: There is no such registry.
            ResourceNameConflictError: The new name is taken.
            ValidationError: The service does not take an argument; `field` says which.
        """
        changes = RegistryWish(
            name=body_name,
            url=url,
            auth_type=auth_type,
            aws_role_arn=aws_role_arn,
            username=username,
            password=password,
        )
        return await self._service.call(lambda control: update_registry(control, path_name, changes), headers)

    async def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        name_contains: str | None = None,
        offset: int | None = None,
        page_size: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RegistryPage:
        """List registries: one page of at most `page_size`.

        Args:
            cursor: The `next_cursor` of the page before.
            limit, offset: Older forms of `page_size` and `cursor`.
        """
        chosen = RegistryFilter(
            name_contains=name_contains, page_size=page_size, cursor=cursor, limit=limit, offset=offset
        )
        return await self._service.call(chosen.call, headers)

    async def delete(self, name: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Have the service forget a registry and its credentials. Snapshots that came from it stay.

        Raises:
            ResourceNotFoundError: There is no such registry.
        """
        await self._service.call(lambda control: delete_registry(control, name), headers)
