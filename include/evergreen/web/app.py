"""The pages as one ASGI app. Everything in it needs a login; every answer carries the security headers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from include.evergreen.errors import EvergreenError, NotFound, Refused, Unavailable
from include.evergreen.platform import Platform
from include.evergreen.web import actions, pages
from include.evergreen.web.access import Access
from include.evergreen.web.guard import HEADERS
from include.evergreen.web.render import render
from include.evergreen.web.site import Forbidden, NoPage, Site, Specs, SpecsOnDisk

log = logging.getLogger("evergreen.web")

TITLES = {
    400: "That did not work",
    401: "Sign in first",
    403: "Not allowed",
    404: "Nothing here",
    405: "Not that way",
    409: "Refused",
    422: "Nothing here",
    500: "Something broke here",
    502: "Airflow did not do it",
    503: "A part is not answering",
}


class NotSignedIn(Exception):
    """No user, or none that Airflow knows."""


class Answers:
    """Every answer gets the security headers it has not set itself; a bug becomes a short page and a log entry."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name.lower() for name, _ in message["headers"]}
                extra = [
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in present
                ]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            await self.app(scope, receive, guarded)
        except Exception:
            log.exception("a page failed: %s", scope["path"])
            if started:
                raise
            request = Request(scope)
            await problem(request, 500, "It is in the log of the API server.")(scope, receive, guarded)


def problem(request: Request, status: int, says: str) -> HTMLResponse:
    """A short page about what went wrong. Reads nothing: it also works when everything else is down."""
    user = getattr(request.state, "user", None)
    html = render(
        "problem.html",
        base=request.scope.get("root_path", ""),
        user=user,
        airflow="",
        open_alerts=0,
        title=TITLES.get(status, "That did not work"),
        says=says,
        status=status,
        quoted=quote,
        href=str,
    )
    return HTMLResponse(html, status)


def create_app(platform: Callable[[], Platform], access: Access, specs: Callable[[], Specs] | None = None) -> FastAPI:
    """The pages.

    Args:
        platform: of this process; called with every request.
        access: who asks and what they may do.
        specs: (models, sources) by name; those of the project by default.
    """
    site = Site(platform, specs or SpecsOnDisk(), access)

    async def signed_in(request: Request) -> None:
        user = await access.user(request)
        if user is None:
            raise NotSignedIn
        request.state.user = user

    app = FastAPI(
        title="Model health",
        dependencies=[Depends(signed_in)],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.site = site
    app.add_middleware(Answers)
    app.include_router(pages.router)
    app.include_router(actions.router)

    @app.exception_handler(NotSignedIn)
    async def _sign_in(request: Request, _: Any) -> Response:
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(access.login_url(f"{request.scope['path']}{query}"), 303)
        return problem(request, 401, "These pages need Airflow's login.")

    @app.exception_handler(Forbidden)
    async def _forbidden(request: Request, error: Forbidden) -> Response:
        return problem(request, 403, str(error))

    @app.exception_handler(NoPage)
    async def _no_page(request: Request, error: NoPage) -> Response:
        return problem(request, 404, str(error))

    @app.exception_handler(EvergreenError)
    async def _expected(request: Request, error: EvergreenError) -> Response:
        if isinstance(error, Unavailable):
            # its text names hosts and databases
            log.warning("%s: %s", request.scope["path"], error)
            return problem(request, 503, "The mart, the object store or the registry does not answer. Try again soon.")
        if isinstance(error, NotFound):
            log.warning("%s: %s", request.scope["path"], error)
            return problem(request, 404, "It is not there (yet). Start with `make up`, then load history and train.")
        if isinstance(error, Refused):
            return problem(request, 409, str(error))
        log.error("%s: %s", request.scope["path"], error)
        return problem(request, 500, "It is in the log of the API server.")

    @app.exception_handler(actions.AirflowRefused)
    async def _airflow(request: Request, error: actions.AirflowRefused) -> Response:
        return problem(request, error.status, str(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return problem(request, error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, _: Any) -> Response:
        return problem(request, 404, "There is no such page.")

    return app
