"""A small client of Airflow's REST API: what the demo, the tests and the settings loader need."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx

from include.evergreen.errors import EvergreenError, NotFound, Unavailable
from include.evergreen.local.layout import Layout

ENDED = {"success", "failed"}
TASK_FAILED = {"failed", "upstream_failed"}


class ApiError(EvergreenError):
    """Airflow refused a request; carries method, path, status and what it said."""

    def __init__(self, method: str, path: str, status: int, detail: str) -> None:
        self.status = status
        super().__init__(f"{method} {path}: expected success, found {status}: {detail}")


class Api:
    """Requests as one user. Every request has a timeout; a server that is away raises Unavailable."""

    def __init__(self, url: str, username: str, password: str, timeout: float = 20) -> None:
        self._url, self._username, self._password = url, username, password
        self._client = httpx.Client(base_url=url, timeout=timeout, trust_env=False)
        self._token: str | None = None

    @classmethod
    def login(cls, layout: Layout, user: str = "admin") -> Api:
        """As one of the users of the embedded stack."""
        api = cls(layout.ui_url, user, layout.secrets.passwords[user])
        api.token()
        return api

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def token(self) -> str:
        """A fresh bearer token. Raises ApiError (wrong password), Unavailable."""
        answer = self._send("POST", "/auth/token", json={"username": self._username, "password": self._password})
        self._token = str(answer.json()["access_token"])
        return self._token

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **kwargs)
        except httpx.TransportError as error:
            raise Unavailable(f"Airflow at {self._url} did not answer {method} {path}: {error!r}") from error
        if answer.status_code >= 400:
            raise ApiError(method, path, answer.status_code, _detail(answer))
        return answer

    def request(self, method: str, path: str, json: Any = None, params: dict[str, Any] | None = None) -> Any:
        """One call of `/api/v2`; a locked database (5xx) is tried again for a moment, an expired token renewed.

        Raises:
            ApiError: Airflow refused; Unavailable: it is away.
        """
        path = f"/api/v2{path}"
        for attempt in range(4):
            if self._token is None:
                self.token()
            try:
                headers = {"Authorization": f"Bearer {self._token}"}
                answer = self._send(method, path, json=json, params=params, headers=headers)
                return answer.json() if answer.content else None
            except ApiError as error:
                if error.status == 401 and attempt == 0:
                    self._token = None
                elif error.status < 500 or attempt == 3 or method == "POST":
                    raise
                else:
                    time.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable")

    def _pages(self, path: str, key: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = self.request("GET", path, params={**params, "limit": 100, "offset": offset})
            yield from page[key]
            offset += len(page[key])
            if not page[key] or offset >= page["total_entries"]:
                return

    # --- DAGs --------------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        return dict(self.request("GET", "/monitor/health"))

    def dags(self) -> list[dict[str, Any]]:
        return list(self._pages("/dags", "dags", {"exclude_stale": True}))

    def import_errors(self) -> list[dict[str, Any]]:
        """DAG files that cannot be imported: filename, stack_trace."""
        return list(self._pages("/importErrors", "import_errors", {}))

    def wait_dag(self, dag_id: str, timeout: float = 60) -> dict[str, Any]:
        """The DAG, once its file was parsed. Raises NotFound with the import errors after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return dict(self.request("GET", f"/dags/{dag_id}"))
            except ApiError as error:
                if error.status != 404:
                    raise
                if time.monotonic() > deadline:
                    broken = "; ".join(f"{e['filename']}: {e['stack_trace'].strip()}" for e in self.import_errors())
                    message = f"DAG {dag_id}: expected within {timeout:g} s, found none. {broken or 'No import error.'}"
                    raise NotFound(message) from error
            time.sleep(0.2)

    def unpause(self, dag_id: str, timeout: float = 60) -> None:
        """Unpause a DAG, waiting for its file to be parsed."""
        if self.wait_dag(dag_id, timeout)["is_paused"]:
            self.request("PATCH", f"/dags/{dag_id}", {"is_paused": False}, {"update_mask": "is_paused"})

    def pause(self, dag_id: str) -> None:
        self.request("PATCH", f"/dags/{dag_id}", {"is_paused": True}, {"update_mask": "is_paused"})

    # --- runs --------------------------------------------------------------------------------------------------------

    def trigger_run(
        self,
        dag_id: str,
        partition_key: str | None = None,
        conf: dict[str, Any] | None = None,
        logical_date: dt.datetime | None = None,
        run_id: str | None = None,
    ) -> str:
        """Start a run; returns its id."""
        body: dict[str, Any] = {"logical_date": logical_date.isoformat() if logical_date else None, "conf": conf or {}}
        if partition_key is not None:
            body["partition_key"] = partition_key
        if run_id is not None:
            body["dag_run_id"] = run_id
        return str(self.request("POST", f"/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def dag_runs(self, dag_id: str, **filters: Any) -> list[dict[str, Any]]:
        """All runs, newest first. `filters` are query parameters of the endpoint, e.g. `state="running"`."""
        return list(self._pages(f"/dags/{dag_id}/dagRuns", "dag_runs", {"order_by": "-run_after", **filters}))

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return dict(self.request("GET", f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"))

    def partition_run(self, dag_id: str, partition_key: str) -> dict[str, Any] | None:
        """The newest run of a partition, None when there is none."""
        found = [
            run
            for run in self._pages(
                f"/dags/{dag_id}/dagRuns",
                "dag_runs",
                {"order_by": "-run_after", "partition_key_pattern": partition_key},
            )
            if run["partition_key"] == partition_key
        ]
        return max(found, key=lambda run: str(run["queued_at"] or run["run_after"]), default=None)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances"
        return list(self._pages(path, "task_instances", {}))

    def running_tasks(self, dag_id: str, run_id: str) -> list[str]:
        return _names(self.task_instances(dag_id, run_id), {"running"})

    def failed_tasks(self, dag_id: str, run_id: str) -> list[str]:
        """Tasks that failed themselves, not those after them; those when there is no other."""
        found = self.task_instances(dag_id, run_id)
        return _names(found, {"failed"}) or _names(found, TASK_FAILED)

    def run_url(self, dag_id: str, run_id: str) -> str:
        """The page of a run in the UI."""
        return f"{self._url}/dags/{dag_id}/runs/{quote(run_id, safe='')}"

    def wait_run(
        self, dag_id: str, run_id: str, timeout: float = 300, each: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """The run once it has ended, whatever its state. Raises Unavailable after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            run = self.dag_run(dag_id, run_id)
            if run["state"] in ENDED:
                return run
            if each:
                each(run)
            if time.monotonic() > deadline:
                states = {t["task_id"]: t["state"] for t in self.task_instances(dag_id, run_id)}
                raise Unavailable(f"{dag_id} {run_id}: expected an end within {timeout:g} s, found tasks {states}")
            time.sleep(0.3)

    # --- backfills ---------------------------------------------------------------------------------------------------

    def backfill(
        self, dag_id: str, since: dt.date, until: dt.date, max_active_runs: int = 1, reprocess: str = "none"
    ) -> int:
        """Run the partitions from `since` to `until`, both included; returns the backfill's id.

        Args:
            reprocess: which existing runs are run again: `none`, `failed` or `completed`.
        """
        body = {
            "dag_id": dag_id,
            "from_date": f"{since.isoformat()}T00:00:00Z",
            "to_date": f"{until.isoformat()}T00:00:00Z",
            "max_active_runs": max_active_runs,
            "reprocess_behavior": reprocess,
        }
        return int(self.request("POST", "/backfills", body)["id"])

    def backfill_state(self, backfill_id: int) -> dict[str, Any]:
        return dict(self.request("GET", f"/backfills/{backfill_id}"))

    def open_backfill(self, dag_id: str) -> int | None:
        """The backfill of a DAG that has not ended, None when there is none."""
        found = self._pages("/backfills", "backfills", {"dag_id": dag_id})
        return next((int(backfill["id"]) for backfill in found if not backfill["completed_at"]), None)

    def hold_backfill(self, backfill_id: int, hold: bool) -> None:
        """Let a backfill start no further run, or let it go on. A run that has started is not touched."""
        if bool(self.backfill_state(backfill_id)["is_paused"]) != hold:
            self.request("PUT", f"/backfills/{backfill_id}/{'pause' if hold else 'unpause'}")

    def wait_backfill(self, backfill_id: int, timeout: float = 300) -> dict[str, Any]:
        """The backfill once it has ended. Raises Unavailable after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not (found := self.backfill_state(backfill_id))["completed_at"]:
            if time.monotonic() > deadline:
                raise Unavailable(f"backfill {backfill_id}: expected an end within {timeout:g} s, it still runs")
            time.sleep(0.3)
        return found


def _names(tasks: list[dict[str, Any]], states: set[str]) -> list[str]:
    return [
        t["task_id"] if t["map_index"] < 0 else f"{t['task_id']}[{t['map_index']}]"
        for t in tasks
        if t["state"] in states
    ]


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json().get("detail", answer.text)
    except (ValueError, AttributeError):
        detail = answer.text
    return (detail if isinstance(detail, str) else str(detail))[:500]
