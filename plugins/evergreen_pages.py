"""Mounts the Model health page under /evergreen and puts it into Airflow's navigation.

Every component imports this file: the page itself is imported at its first request. It also tells Airflow of the
reference that the deadlines of the DAGs count from.
"""

from __future__ import annotations

import threading
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from include.evergreen.orchestration.deadline import RunCreated

PREFIX = "/evergreen"


class Pages:
    """The page as an ASGI app. It is told which app it is mounted in, whose REST API the actions use."""

    def __init__(self) -> None:
        self._app: Any = None
        self._lock = threading.Lock()

    def _open(self) -> Any:
        with self._lock:
            if self._app is None:
                from include.evergreen.orchestration.access import AirflowAccess
                from include.evergreen.orchestration.connections import platform
                from include.evergreen.web.app import create_app

                self._app = create_app(platform, AirflowAccess())
        return self._app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._app
        if app is None:
            from starlette.concurrency import run_in_threadpool

            app = await run_in_threadpool(self._open)
        await app({**scope, "evergreen.airflow": scope.get("app")}, receive, send)


class EvergreenPages(AirflowPlugin):
    """The Model health page."""

    name = "evergreen_pages"
    deadline_references = [RunCreated]  # noqa: RUF012
    fastapi_apps = [{"app": Pages(), "url_prefix": PREFIX, "name": "Evergreen pages"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Models",
            "href": f"{PREFIX}/",
            "destination": "nav",
            "url_route": "model_health",
            "icon": f"{PREFIX}/static/icon.svg",
            "icon_dark_mode": f"{PREFIX}/static/icon-dark.svg",
            "nav_top_level": True,
        },
        {
            "name": "Model health",
            "href": f"{PREFIX}/dags/{{DAG_ID}}",
            "destination": "dag",
            "url_route": "model_health_dag",
            "icon": f"{PREFIX}/static/icon.svg",
            "icon_dark_mode": f"{PREFIX}/static/icon-dark.svg",
        },
    ]
