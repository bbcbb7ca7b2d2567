"""The sandbox server: one public listener, a control plane, and a router to the daemons inside the sandboxes.

    client --HTTP, websocket--> Router --bytes--> daemon (one per running sandbox)
                                  |
                                  +--ASGI--> control plane --> SandboxRegistry --> Runtime

| module | what it decides |
|---|---|
| `serve` | how a server starts and stops; `ServerConfig` |
| `embedded_main` | the server as a process that dies with its owner |
| `router` | which request goes where, and who may make it |
| `connection`, `exchange` | the framing of one public connection and of one request on it |
| `forward`, `splice` | a request to a daemon, and what becomes of it after 101 |
| `app`, `creation`, `views` | the control plane: routes, validation, JSON |
| `sandboxes`, `store` | the life of a sandbox |

asyncio only.
"""
