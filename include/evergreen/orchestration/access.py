"""Airflow behind the port `access.Access`: its login, its permissions, its REST API. For the pages of `web/`."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user
from airflow.configuration import conf
from airflow.models.dag import DagModel
from fastapi import HTTPException
from fastapi.security import HTTPAuthorizationCredentials
from starlette.requests import Request

from include.evergreen.errors import SettingsError
from include.evergreen.web.access import Answer, Entity, Method, User

AIRFLOW_APP = "evergreen.airflow"
"""Key of a request's scope: the ASGI app that the pages are mounted in."""


class AirflowAccess:
    """The API server that this process is."""

    def secret(self) -> bytes:
        found = conf.get("api", "secret_key", fallback="")
        if not found:
            raise SettingsError("[api] secret_key: expected one, the same in every API server, found none")
        return str(found).encode()

    def origins(self) -> frozenset[str]:
        url = urlsplit(self.airflow_url())
        return frozenset({f"{url.scheme}://{url.netloc}"} if url.netloc else ())

    def airflow_url(self) -> str:
        return str(conf.get("api", "base_url", fallback="")).rstrip("/")

    def login_url(self, then: str) -> str:
        return str(get_auth_manager().get_url_login(next_url=then))

    async def user(self, request: Request) -> User | None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        bearer = given.strip() if scheme.lower() == "bearer" else ""
        credentials = HTTPAuthorizationCredentials(scheme=scheme, credentials=bearer) if bearer else None
        try:
            found = await get_user(request, None, credentials)
        except HTTPException:
            return None
        token = bearer or request.cookies.get(COOKIE_NAME_JWT_TOKEN, "")
        return User(str(found.get_id()), str(found.get_name()), token, found)

    def may(self, user: User, method: Method, dag_id: str, entity: Entity) -> bool:
        team = DagModel.get_team_name(dag_id) if conf.getboolean("core", "multi_team", fallback=False) else None
        details = DagDetails(id=dag_id, team_name=team)
        allowed = get_auth_manager().is_authorized_dag(
            method=method, access_entity=DagAccessEntity[entity], details=details, user=user.identity
        )
        return bool(allowed)

    async def call(self, request: Request, user: User, method: str, path: str, body: Any = None) -> Answer:
        """In this process, without a socket: no proxy, certificate or host name stands between."""
        transport = httpx.ASGITransport(app=request.scope[AIRFLOW_APP], raise_app_exceptions=False)
        root = urlsplit(self.airflow_url()).path
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://airflow{root}/api/v2", timeout=30
        ) as client:
            said = await client.request(
                method, path, json=body, headers={"Authorization": f"Bearer {user.token}", "Accept": "application/json"}
            )
        try:
            found = said.json()
        except ValueError:
            found = {}
        return Answer(said.status_code, found if isinstance(found, dict) else {})
