"""The pages without Airflow: three users by token or cookie, and a REST API that keeps the runs it was asked for."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.requests import Request

from include.evergreen.errors import NotFound
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.mart.store import Mart
from include.evergreen.promotion.memory import MemoryRegistry
from include.evergreen.web.access import Answer, Entity, Method, User
from include.evergreen.web.app import create_app
from tests import examples_health
from tests.support import MemoryPlatform, memory_platform

USERS = ("admin", "oncall", "analyst")
REPORT = """<html><body><p id="drawn">a report</p>
<script>document.title = "drawn"; try { parent.__hacked = 1 } catch {}</script></body></html>"""
ORIGIN = "http://pages.test"


@dataclass
class FakeAirflow:
    """`access.Access`, with the token `token-<user>`. The analyst only reads.

    Attributes:
        runs: by (dag_id, run_id), as the REST API shows them.
        questions: open and answered questions by run id of `approve__*`.
        calls: every request to the REST API: (user, method, path, body).
    """

    mart: Mart
    runs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str, str, Any]] = field(default_factory=list)
    paused: bool = False

    def secret(self) -> bytes:
        return b"a secret of the tests"

    def origins(self) -> frozenset[str]:
        return frozenset({"https://airflow.example.org"})

    def airflow_url(self) -> str:
        return ORIGIN

    def login_url(self, then: str) -> str:
        return f"/auth/login?next={then}"

    async def user(self, request: Request) -> User | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ") or request.cookies.get("_token", "")
        name = token.removeprefix("token-")
        return User(name, name, token) if token.startswith("token-") and name in USERS else None

    def may(self, user: User, method: Method, dag_id: str, entity: Entity) -> bool:
        return method == "GET" or user.name != "analyst"

    async def call(self, request: Request, user: User, method: str, path: str, body: Any = None) -> Answer:
        self.calls.append((user.name, method, path, body))
        parts = [unquote(part) for part in path.split("?")[0].strip("/").split("/")]
        if method != "GET" and user.name == "analyst":
            return Answer(403, {"detail": "Forbidden"})
        if parts[-1] == "hitlDetails":
            return self._question(user, method, parts[3], body)
        if len(parts) == 2:
            return Answer(200, {"dag_id": parts[1], "is_paused": self.paused})
        return self._run(user, method, parts, body)

    def _run(self, user: User, method: str, parts: list[str], body: Any) -> Answer:
        key = (parts[1], body["dag_run_id"] if method == "POST" else parts[3])
        if method == "POST":
            if key in self.runs:
                return Answer(409, {"detail": "the run exists"})
            self.runs[key] = {
                "dag_run_id": key[1],
                "state": "success",
                "conf": body["conf"],
                "triggering_user_name": user.name,
            }
            self._work(key[0], key[1], body["conf"], user.name)
        return Answer(200, self.runs[key]) if key in self.runs else Answer(404, {"detail": "no such run"})

    def _work(self, dag_id: str, run_id: str, conf: Mapping[str, Any], who: str) -> None:
        """What the DAG writes to the ledger."""
        if dag_id != "rollback":
            return
        history = self.mart.champion_history(conf["model"])
        since = history[-1]["effective_from"]
        plan = {
            "model": conf["model"],
            "version": conf["version"],
            "withdrawn": history[-1]["version"],
            "effective_from": since.isoformat(),
            "partitions": [since.isoformat()],
            "rows": 905,
        }
        self.mart.append_decision(
            kind="rollback",
            subject=conf["model"],
            as_of=since,
            outcome="dry_run" if conf["dry_run"] else "rolled_back",
            reasons=[conf["reason"]],
            evidence=plan,
            actor=who,
            run_id=run_id,
        )

    def _question(self, user: User, method: str, run_id: str, body: Any) -> Answer:
        if run_id == "~":
            waiting = [one for one in self.questions.values() if not one["response_received"]]
            return Answer(200, {"hitl_details": waiting, "total_entries": len(waiting)})
        found = self.questions.get(run_id)
        if found is None:
            return Answer(404, {"detail": "no such question"})
        if method == "PATCH":
            if found["response_received"]:
                return Answer(409, {"detail": "already answered"})
            found |= {
                "response_received": True,
                "chosen_options": body["chosen_options"],
                "responded_by_user": {"id": user.id, "name": user.name},
            }
        return Answer(200, found)

    def ask(self, model: str, version: int, as_of: dt.date) -> str:
        """A question of `approve__<model>`; its run id."""
        run_id = f"asset_triggered__{model}|{as_of}T00:00:00+00:00_x"
        self.questions[run_id] = {
            "subject": f"Promote {model} version {version}, trained as of {as_of}?",
            "body": "",
            "options": ["Approve", "Reject"],
            "assigned_users": [{"id": "oncall", "name": "oncall"}],
            "response_received": False,
            "task_instance": {"dag_run_id": run_id, "task_id": "wait", "map_index": -1},
        }
        return run_id


@dataclass
class Pages:
    """The app on a seeded mart, and everything it was made of."""

    app: FastAPI
    airflow: FakeAirflow
    world: examples_health.World
    mart: Mart
    asked: str


class _Registry(MemoryRegistry):
    """Every version has the same card."""

    def attachment(self, model: str, number: int, name: str) -> bytes:
        if number > 50:
            raise NotFound(f"{model}: expected version {number}, found none")
        return REPORT.encode()


class _Platform(MemoryPlatform):
    """With the quarantine of the seeded world."""

    world: examples_health.World
    hostile: bool

    @cached_property
    def lake(self) -> MemoryLake:
        return examples_health.quarantine(self.world, self.hostile)

    @cached_property
    def registry(self) -> MemoryRegistry:
        return _Registry()


def pages(folder: Path, models: int = 6, days: int = 60, hostile: bool = False) -> Pages:
    """The app over `examples_health.seed`, with reports, validation results and cards that hold a script."""
    platform = _Platform(memory_platform(folder).settings)
    world = platform.world = examples_health.seed(platform.mart, models, days, hostile)
    platform.hostile = hostile
    dates = [world.today - dt.timedelta(days=ago) for ago in range(days + 2)]
    tables = [table for source in world.sources.values() for table in source.tables]
    for folder_, names in (("reports", world.models), ("validation", tables)):
        for name in names:
            for day in dates:
                platform.objects.put(f"{folder_}/{name}/{day}.html", REPORT.encode())
    airflow = FakeAirflow(platform.mart)
    human = [name for name, spec in world.models.items() if spec.approval == "human"]
    asked = airflow.ask(human[0], 2, world.today) if human else ""
    app = create_app(lambda: platform, airflow, lambda: (world.models, world.sources))
    return Pages(app, airflow, world, platform.mart, asked)
