"""A program for browsers: its page fetches from it and talks to it by a websocket, and shows what came of it."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import HTMLResponse

app = FastAPI()
app.state.count = 0
NAME = sys.argv[1]

PAGE = """
<!doctype html><html lang="en"><meta charset="utf-8"><title>loading</title>
<style>body{font:16px/1.5 sans-serif;margin:1.5em;white-space:nowrap}dt{font-weight:bold}dd{margin:0 0 .6em 1em}</style>
<h1>Hello from sandbox NAME</h1>
<dl><dt>Origin</dt><dd id="origin"></dd>
<dt>fetch("/api/data")</dt><dd id="fetched">&hellip;</dd><dt>WebSocket("/ws")</dt><dd id="echoed">&hellip;</dd></dl>
<script>
const show = (id, text) => { document.getElementById(id).textContent = text; return text; };
show("origin", location.origin);
const fetched = fetch("/api/data").then(answer => answer.json()).then(data => show("fetched", data.text));
const echoed = new Promise((done, failed) => {
  const socket = new WebSocket(`ws://${location.host}/ws`);
  socket.onopen = () => socket.send("Anybody there?");
  socket.onmessage = event => { done(show("echoed", event.data)); socket.close(); };
  socket.onerror = () => failed(new Error("the websocket failed"));
});
document.cookie = "page=NAME";
localStorage.setItem("page", "NAME");
Promise.all([fetched, echoed]).then(
  texts => { document.title = "done"; window.parent.postMessage(texts.join("; "), "*"); },
  error => { document.title = String(error); });
</script>
"""


@app.get("/")
async def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(PAGE.replace("NAME", NAME))


@app.get("/api/data")
async def data() -> dict[str, str]:
    """What the page fetches."""
    app.state.count += 1
    return {"text": f"data of {NAME}"}


@app.get("/count")
async def count() -> dict[str, int]:
    """How often that was."""
    return {"count": app.state.count}


@app.websocket("/ws")
async def echo(socket: WebSocket) -> None:
    """Answer one message."""
    await socket.accept()
    await socket.send_text(f"{NAME} heard: {await socket.receive_text()}")
    await socket.receive()


if __name__ == "__main__":
    uvicorn.run(app, port=8000)
