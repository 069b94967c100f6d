"""What every page shares: the platform, the specs as they are on disk, who asks, and how a page is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from include.evergreen.alerts.inbox import Inbox
from include.evergreen.platform import Platform
from include.evergreen.specs import PROJECT, ModelSpec, SourceSpec
from include.evergreen.web import guard
from include.evergreen.web.access import Access, Entity, Method, User
from include.evergreen.web.render import render

LOOK_AGAIN_SECONDS = 5
PREFIX = "/evergreen"
"""Where the plugin mounts the pages; recorded links begin with it."""
Specs = tuple[Mapping[str, ModelSpec], Mapping[str, SourceSpec]]


class Forbidden(Exception):
    """The user is known and may not do this."""


class NoPage(Exception):
    """There is nothing at this address; the text is shown."""


class SpecsOnDisk:
    """Models and sources, read again when a file changed. Called from several threads."""

    def __init__(self, root: Path = PROJECT) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._looked, self._print, self._found = 0.0, (), None

    _print: tuple[tuple[str, int], ...]
    _found: Specs | None

    def __call__(self) -> Specs:
        from include.evergreen.specs import survey

        with self._lock:
            if self._found is None or time.monotonic() - self._looked > LOOK_AGAIN_SECONDS:
                files = sorted([*self._root.glob("include/models/*/*"), *self._root.glob("include/sources/*/*.yaml")])
                now = tuple((str(path), path.stat().st_mtime_ns) for path in files)
                if self._found is None or now != self._print:
                    specs = survey(self._root)  # a wrong one is an import error in Airflow's UI; the others go on
                    self._found, self._print = (specs.models, specs.sources), now
                self._looked = time.monotonic()
            return self._found


@dataclass(frozen=True)
class Site:
    """Everything a request needs. `platform` and `specs` are called per request, so that both may open lazily."""

    platform_of: Callable[[], Platform]
    specs_of: Callable[[], Specs]
    access: Access
    runbooks: Path = PROJECT / "docs/runbooks"

    @property
    def platform(self) -> Platform:
        return self.platform_of()

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        return self.specs_of()[0]

    @property
    def sources(self) -> Mapping[str, SourceSpec]:
        return self.specs_of()[1]

    @cached_property
    def secret(self) -> bytes:
        return self.access.secret()

    def model(self, name: str) -> ModelSpec:
        """Raises NoPage."""
        if name not in self.models:
            raise NoPage("There is no model of this name.")
        return self.models[name]

    def table(self, source: str, table: str) -> SourceSpec:
        """The source of a table. Raises NoPage."""
        found = self.sources.get(source)
        if found is None or table not in found.tables:
            raise NoPage("There is no table of this name.")
        return found

    def source_of(self, table: str) -> SourceSpec:
        """Raises NoPage."""
        found = next((spec for spec in self.sources.values() if table in spec.tables), None)
        if found is None:
            raise NoPage("There is no table of this name.")
        return found

    # --- answers -----------------------------------------------------------------------------------------------------

    def url(self, request: Request, path: str) -> str:
        """A path of the pages as the browser knows it."""
        return f"{request.scope.get('root_path', '')}{path}"

    def _href(self, request: Request, link: str) -> str:
        """Where a recorded link leads here; a link that is no path of the pages leads to the fleet."""
        return self.url(request, link.removeprefix(PREFIX) if link.startswith(f"{PREFIX}/") else "/")

    def page(self, request: Request, template: str, status: int = 200, refresh: int = 0, **values: Any) -> HTMLResponse:
        """A page in its frame; `refresh` asks the browser to load it again after so many seconds."""
        user: User | None = getattr(request.state, "user", None)
        shared = {
            "base": request.scope.get("root_path", ""),
            "user": user,
            "airflow": self.access.airflow_url(),
            "open_alerts": self._open_alerts() if user and status < 500 else 0,
            "quoted": lambda text: quote(str(text), safe=""),
            "href": lambda link: self._href(request, str(link)),
        }
        headers = {"Refresh": str(refresh)} if refresh else {}
        return HTMLResponse(render(template, **shared, **values), status, headers)

    def _open_alerts(self) -> int:
        return Inbox(self.platform.mart).count_open()

    def redirect(self, request: Request, path: str) -> RedirectResponse:
        return RedirectResponse(self.url(request, path), 303)

    # --- permissions -------------------------------------------------------------------------------------------------

    def may(self, request: Request, method: Method, dag_id: str, entity: Entity = "RUN") -> bool:
        return self.access.may(request.state.user, method, dag_id, entity)

    def require(self, request: Request, method: Method, dag_id: str, entity: Entity = "RUN") -> None:
        """Raises Forbidden."""
        if not self.may(request, method, dag_id, entity):
            raise Forbidden(f"Airflow gives {request.state.user.name} no permission for this on the DAG {dag_id}.")

    def alert_dag(self, subject: str) -> str:
        """The DAG whose permission it takes to answer an alert about a model or a source."""
        return f"ingest__{subject}" if subject in self.sources else f"monitor__{subject}"

    def token(self, request: Request, purpose: str) -> str:
        return guard.sign(self.secret, request.state.user.id, purpose)

    async def form(self, request: Request, purpose: str) -> guard.Form:
        """Raises Refused."""
        return await guard.sent_form(request, self.secret, request.state.user.id, purpose, self.access.origins())
