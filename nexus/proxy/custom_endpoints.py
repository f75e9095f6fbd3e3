"""The rows of custom endpoints, which the operators add in `[[endpoints.custom]]`."""

from __future__ import annotations

from nexus.config.endpoint_records import CustomEndpoint
from nexus.config.records import Config
from nexus.dialects import plain
from nexus.dialects.base import RequestForm
from nexus.proxy.endpoint_table import Endpoint

_TYPES = {"json": "application/json", "multipart": "multipart/form-data"}


def custom_endpoints(config: Config) -> tuple[Endpoint, ...]:
    """One row for each."""
    return tuple(_row(settings) for settings in config.endpoints.custom)


def _row(settings: CustomEndpoint) -> Endpoint:
    media_type = _TYPES.get(settings.body)
    return Endpoint(
        name=settings.label,
        path=settings.path,
        dialect=plain,
        form=RequestForm(prompts=(), task=""),
        summary="An endpoint of the operators",
        streams=settings.streams,
        methods=("GET",) if settings.body == "none" else ("POST",),
        content_types=() if media_type is None else (media_type,),
        body=settings.body,
        binary=settings.streams,
        backend=settings.backend,
        custom=True,
    )
