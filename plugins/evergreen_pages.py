"""Drift reports, validation results and model cards behind Airflow's login.

Object keys are looked up in the mart or the registry, never taken from the URL. Pages hold text from the data, so they
are sandboxed: they may draw, they may not act as the viewer.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from airflow.api_fastapi.core_api.security import requires_authenticated
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException, Path, Response

from include.evergreen.errors import NotFound, Unavailable
from include.evergreen.orchestration.connections import platform

HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
}

app = FastAPI(
    title="Evergreen pages",
    dependencies=[Depends(requires_authenticated())],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)


def _page(uri: str | None, what: str) -> Response:
    objects = platform().objects
    prefix = objects.uri("")
    if not uri or not uri.startswith(prefix):
        raise HTTPException(404, f"no {what}")
    try:
        body = objects.get(uri.removeprefix(prefix))
    except NotFound:
        raise HTTPException(404, f"no {what}: its file is gone") from None
    except Unavailable:
        raise HTTPException(503, "the object store does not answer") from None
    return Response(body, media_type="text/html; charset=utf-8", headers=HEADERS)


@app.get("/reports/{model}/{as_of}")
def report(model: str, as_of: dt.date) -> Response:
    """The drift report of a model and as-of date."""
    found = [row for row in platform().mart.monitorings(model, until=as_of, limit=1) if row["as_of"] == as_of]
    return _page(found[0]["report_uri"] if found else None, "drift report of this model and date")


@app.get("/validation/{table}/{partition}")
def validation(table: str, partition: dt.date) -> Response:
    """The validation result of a table's partition."""
    found = [row for row in platform().mart.batches(table) if row["partition_date"] == partition]
    return _page(found[0]["validation_uri"] if found else None, "validation result of this table and partition")


@app.get("/cards/{model}/{version}")
def card(
    model: Annotated[str, Path(pattern=r"^[a-z][a-z0-9_]{0,47}$")], version: Annotated[int, Path(ge=1, lt=2**31)]
) -> Response:
    """The card of a model's version."""
    try:
        body = platform().registry.attachment(model, version, "card.html")
    except NotFound:
        raise HTTPException(404, "no card of this model and version") from None
    except Unavailable:
        raise HTTPException(503, "the model registry does not answer") from None
    return Response(body, media_type="text/html; charset=utf-8", headers=HEADERS)


class EvergreenPages(AirflowPlugin):
    """Mounts the pages under /evergreen."""

    name = "evergreen_pages"
    fastapi_apps = [{"app": app, "url_prefix": "/evergreen", "name": "Evergreen pages"}]  # noqa: RUF012
