"""A program as its author would write it, in FastAPI. The tests run it in a sandbox, with uvicorn."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

app = FastAPI()
told = asyncio.Event()
FILE = "/srv/files/data.bin"


class Item(BaseModel):
    """What the program is sent."""

    name: str
    price: float


@app.get("/items/{item_id}")
async def read_item(item_id: int, q: str | None = None) -> dict[str, object]:
    """Find an item, or say that there is none."""
    if item_id > 100:
        raise HTTPException(404, f"no item {item_id}")
    return {"item_id": item_id, "q": q}


@app.post("/items", status_code=201)
async def create_item(item: Item) -> Item:
    """Answer with the item."""
    return item


@app.get("/file")
async def send_file() -> FileResponse:
    """Send a file, or the part of it that is asked for."""
    return FileResponse(FILE)


@app.get("/numbers")
async def stream_numbers() -> StreamingResponse:
    """Answer in a hundred pieces, of no length that is told before."""

    async def numbers() -> AsyncIterator[bytes]:
        for number in range(100):
            yield f"{number}\n".encode() * 1000
            await asyncio.sleep(0)

    return StreamingResponse(numbers(), media_type="text/plain")


@app.get("/events")
async def send_events() -> StreamingResponse:
    """Send an event at once, and one more each time that somebody posts to `/tell`; three in all."""
    told.clear()

    async def events() -> AsyncIterator[str]:
        for number in range(3):
            yield f"event: step\ndata: {number}\n\n"
            await told.wait()
            told.clear()

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/tell")
async def tell() -> None:
    """Have the next event sent."""
    told.set()


@app.post("/digest")
async def digest(request: Request) -> dict[str, object]:
    """Read the body as it comes."""
    hashed, size = hashlib.sha256(), 0
    async for piece in request.stream():
        hashed.update(piece)
        size += len(piece)
    return {"size": size, "sha256": hashed.hexdigest(), "length": request.headers.get("content-length")}


@app.websocket("/echo")
async def echo(socket: WebSocket) -> None:
    """Send back what comes, text or bytes."""
    await socket.accept(subprotocol="echo" if "echo" in socket.scope["subprotocols"] else None)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") is not None:
                await socket.send_text(message["text"])
            else:
                await socket.send_bytes(message["bytes"])
    except WebSocketDisconnect:
        return
