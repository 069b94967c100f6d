"""Who asks, what they may do, and Airflow's REST API in their name: the port between the pages and Airflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from starlette.requests import Request

Method = Literal["GET", "POST", "PUT"]
Entity = Literal["RUN", "HITL_DETAIL"]


@dataclass(frozen=True)
class User:
    """A signed-in user. `token` is the credential of this request; `identity` is Airflow's own user object."""

    id: str
    name: str
    token: str = field(repr=False)
    identity: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Answer:
    """What Airflow's REST API said."""

    status: int
    body: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        return self.status < 400

    @property
    def detail(self) -> str:
        """Airflow's own words about a refusal."""
        said = self.body.get("detail", "")
        return said if isinstance(said, str) else "the request was not understood"


class Access(Protocol):
    """What the pages need of Airflow."""

    def secret(self) -> bytes:
        """The key that forms are signed with; the same in every API server."""

    def origins(self) -> frozenset[str]:
        """Origins under which a reverse proxy serves this Airflow (`http://host:port`), beside the request's own."""

    def airflow_url(self) -> str:
        """Base URL of Airflow's UI as a browser reaches it, without a slash at its end."""

    def login_url(self, then: str) -> str:
        """Where to sign in, coming back to `then`."""

    async def user(self, request: Request) -> User | None:
        """The signed-in user, or None."""

    def may(self, user: User, method: Method, dag_id: str, entity: Entity) -> bool:
        """Whether Airflow lets the user do that with a DAG. May read a database."""

    async def call(self, request: Request, user: User, method: str, path: str, body: Any = None) -> Answer:
        """One request to `/api/v2` + path, as the user: Airflow checks the permission again and notes who it was."""
