"""Adapters over HTTP, as vLLM has them. Owns the bodies of `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse, Response

from coordinator.edge.http.bodies import body_schema, check_fields, parse_object
from coordinator.edge.http.field_types import Bool, Int  # noqa: TC001 - pydantic reads the annotations

if TYPE_CHECKING:
    from coordinator.edge.answers.adapters import AdapterBook
    from coordinator.edge.http.bodies import BodyReader

Name = Annotated[str, Field(min_length=1, max_length=256)]
Path = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


class LoadRequest(BaseModel):
    """Read an adapter from a directory of the server's host; with several models, `base_model_name` is the one that it is for."""

    model_config = ConfigDict(extra="forbid")

    lora_name: Name
    lora_path: Path
    load_inplace: Bool = False
    base_model_name: Name | None = None


class UnloadRequest(BaseModel):
    """Forget an adapter. `lora_int_id`, which is vLLM's own, means nothing."""

    model_config = ConfigDict(extra="forbid")

    lora_name: Name
    lora_int_id: Int | None = None


class AdapterRoutes:
    """What operators change while the server runs."""

    def __init__(self, book: AdapterBook, bodies: BodyReader) -> None:
        self._book, self._bodies = book, bodies

    def router(self) -> APIRouter:
        """Their routes."""
        router = APIRouter(prefix="/v1")
        for path, endpoint, model in (
            ("/load_lora_adapter", self.load, LoadRequest),
            ("/unload_lora_adapter", self.unload, UnloadRequest),
        ):
            extra = body_schema(model)
            router.add_api_route(
                path, endpoint, methods=["POST"], response_model=None, openapi_extra=extra
            )
        return router

    async def load(self, request: Request) -> Response:
        """Name an adapter; requests may name it from now on."""
        asked = await self._bodies.read(
            request, lambda body: check_fields(parse_object(body), LoadRequest)
        )
        base, in_place = asked.base_model_name, asked.load_inplace
        await self._book.load(asked.lora_name, asked.lora_path, base, in_place=in_place)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        """What is being answered with it goes on."""
        asked = await self._bodies.read(
            request, lambda body: check_fields(parse_object(body), UnloadRequest)
        )
        await self._book.unload(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")
