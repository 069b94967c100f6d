"""The pages over HTTP, in this process, as Airflow mounts them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

FRAME = """<!doctype html><title>Airflow</title><iframe id="frame" src="{path}" width="1200" height="900"
sandbox="allow-scripts allow-same-origin allow-forms allow-downloads"></iframe>"""


def _frame(request: Request) -> Response:
    """A page that frames ours as Airflow's UI does."""
    return HTMLResponse(FRAME.format(path=request.path_params["path"]))


def _forge(request: Request) -> Response:
    """A page of another site that sends a form to ours."""
    return HTMLResponse(
        f"<!doctype html><form method='post' action='{request.query_params['to']}'><input name='note' value='forged'>"
        "<button>send</button></form>"
    )


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """`http://127.0.0.1:<port>`, with the pages under /evergreen."""
    outer = Starlette(
        routes=[
            Mount("/evergreen", app),
            Route("/framed{path:path}", _frame),
            Route("/elsewhere", _forge),
        ]
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(outer, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
