"""`make demo`: the whole loop through Airflow on real flights, resumable at every step."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from include.evergreen.errors import EvergreenError
from include.evergreen.local.api import Api
from include.evergreen.local.stack import Stack
from include.evergreen.mart.store import Mart
from include.evergreen.platform import Platform
from include.evergreen.settings import Settings

SOURCE, MODEL = "nyc_flights", "flight_delay"
INGEST, SCORE, MONITOR, TRAIN = f"ingest__{SOURCE}", f"score__{MODEL}", f"monitor__{MODEL}", f"train__{MODEL}"


class DemoFailed(EvergreenError):
    """A step of the demo did not do what it should."""


@dataclass(frozen=True)
class Scenario:
    """Which days are loaded in bulk, when the first champion was trained, which days are replayed."""

    history_from: dt.date = dt.date(2013, 1, 1)
    train_as_of: dt.date = dt.date(2013, 6, 1)
    replay_from: dt.date = dt.date(2013, 6, 24)
    replay_until: dt.date = dt.date(2013, 7, 7)

    @property
    def history_as_of(self) -> dt.date:
        return self.replay_from - dt.timedelta(days=1)

    @property
    def days(self) -> list[dt.date]:
        return [self.replay_from + dt.timedelta(days=i) for i in range((self.replay_until - self.replay_from).days + 1)]


class Bars:
    """One bar per stage: what runs now, how much is done, when it should end. Plain lines when not on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
        )

    def __enter__(self) -> Bars:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        """Yields `step(now, done=0)`: say what runs, and how many units were finished."""
        started = time.monotonic()
        task = self._progress.add_task(title, total=total, now="")
        completed = 0

        def step(now: str, done: int = 0) -> None:
            nonlocal completed
            completed += done
            self._progress.update(task, advance=done, now=now)
            if not self._console.is_terminal and done:
                spent = time.monotonic() - started
                eta = spent / completed * (total - completed) if completed else 0
                self._console.print(f"{title}: {completed}/{total} {now} ({spent:.0f} s, eta {eta:.0f} s)")

        yield step
        self._progress.update(task, completed=total, now=f"{time.monotonic() - started:.1f} s")


class Demo:
    """Each stage looks at what is there and does only what is missing."""

    def __init__(self, settings: Settings, api: Api, scenario: Scenario, console: Console) -> None:
        self.platform = Platform(settings)
        self.mart: Mart = self.platform.mart
        self.api, self.scenario, self.console = api, scenario, console

    # --- stages ------------------------------------------------------------------------------------------------------

    def publish_files(self, step: Callable[..., None]) -> None:
        from include.sources.nyc_flights.publish import publish

        written = publish(self.platform.landing, self.scenario.history_from, self.scenario.replay_until)
        step(f"{written} new files in s3://{self.platform.landing.bucket}/{SOURCE}/", 1)

    def load_history(self, step: Callable[..., None]) -> None:
        scenario = self.scenario
        self.api.unpause(INGEST)
        if scenario.history_as_of not in {row["partition_date"] for row in self.mart.batches("schedules")}:
            step(f"{scenario.history_from} to {scenario.history_as_of} in one run")
            run_id = self.api.trigger_run(
                INGEST,
                partition_key=scenario.history_as_of.isoformat(),
                conf={"history_from": scenario.history_from.isoformat()},
            )
            self._wait_run(INGEST, run_id, step)
        rows = sum(total["trusted"] for total in self.mart.totals().values())
        step(f"{rows:,} trusted rows", 1)

    def train_first(self, step: Callable[..., None]) -> None:
        self.api.unpause(TRAIN)
        if not self.mart.champion_history(MODEL):
            run_id = self.api.trigger_run(
                TRAIN,
                conf={"reason": "first champion", "as_of": self.scenario.train_as_of.isoformat()},
            )
            self._wait_run(TRAIN, run_id, step)
        champion = self.mart.champion_at(MODEL, self.scenario.train_as_of)
        if champion is None:
            reasons = [d["reasons"] for d in self.mart.decisions(subject=MODEL, kind="gate", limit=1)]
            raise DemoFailed(f"expected a first champion, found none. The gate said: {reasons}")
        step("version 1 is champion", 1)

    def replay(self, step: Callable[..., None]) -> None:
        for dag_id in (SCORE, MONITOR):
            self.api.unpause(dag_id)
        judged = {row["as_of"] for row in self.mart.monitorings(MODEL)}
        missing = [day for day in self.scenario.days if day not in judged]
        backfill = self.api.open_backfill(INGEST) if missing else None
        if missing and backfill is None:
            backfill = self.api.backfill(INGEST, missing[0], missing[-1], max_active_runs=1, reprocess="failed")
        for day in self.scenario.days:
            if backfill is not None and day in missing:
                self._release(backfill, day, step, hold=day != missing[-1])
            self._wait_cycle(day, step)
            verdict = next(row["verdict"] for row in self.mart.monitorings(MODEL, until=day, limit=1))
            step(f"{day}: {verdict}", 1)

    def _release(
        self, backfill: int, day: dt.date, step: Callable[..., None], hold: bool, timeout: float = 120
    ) -> None:
        """Let the backfill start one day and hold the next: a retrain is decided before tomorrow is scored.

        After the last day nothing is held: a cleared run of a held backfill never starts.
        """
        deadline = time.monotonic() + timeout
        while (run := self.api.partition_run(INGEST, day.isoformat())) is None or run["state"] == "queued":
            self.api.hold_backfill(backfill, False)
            if time.monotonic() > deadline:
                raise DemoFailed(f"{INGEST} {day}: expected its backfill to start within {timeout:.0f} s, found {run}")
            step(f"{day}: {INGEST}")
            time.sleep(0.1)
        if hold:
            self.api.hold_backfill(backfill, True)

    def tidy(self, step: Callable[..., None]) -> None:
        self.api.unpause("maintain_lake")
        if not self.api.dag_runs("maintain_lake"):
            self._wait_run("maintain_lake", self.api.trigger_run("maintain_lake"), step)
        step("snapshots expired, small files compacted", 1)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _wait_run(self, dag_id: str, run_id: str, step: Callable[..., None], timeout: float = 600) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            run = self.api.dag_run(dag_id, run_id)
            if run["state"] == "success":
                return
            if run["state"] == "failed":
                raise DemoFailed(self._explain(dag_id, run_id))
            step(f"{dag_id}: {', '.join(self.api.running_tasks(dag_id, run_id)) or run['state']}")
            time.sleep(0.4)
        raise DemoFailed(f"{dag_id} {run_id}: expected an end within {timeout:.0f} s, found it {run['state']}")

    def _wait_cycle(self, day: dt.date, step: Callable[..., None], timeout: float = 600) -> None:
        """Until ingest, score and monitor of `day` are done, and the training that it asked for, if any."""
        deadline = time.monotonic() + timeout
        key = day.isoformat()
        while time.monotonic() < deadline:
            waiting = None
            asked = self._allowed(day)
            chain = [(INGEST, key), (SCORE, key), (MONITOR, key), *([(TRAIN, f"{MODEL}|{key}")] if asked else [])]
            for dag_id, partition_key in chain:
                run = self.api.partition_run(dag_id, partition_key)
                if run is not None and run["state"] == "failed":
                    raise DemoFailed(self._explain(dag_id, run["dag_run_id"]))
                if run is None or run["state"] != "success":
                    waiting = dag_id
                    break
            if waiting is None and asked == self._allowed(day):
                return
            step(f"{day}: {waiting or 'done'}")
            time.sleep(0.25)
        raise DemoFailed(f"{day}: expected the daily cycle within {timeout:.0f} s, still waiting for {waiting}")

    def _allowed(self, day: dt.date) -> bool:
        return any(
            d["as_of"] == day and d["outcome"] == "allowed" for d in self.mart.decisions(subject=MODEL, kind="retrain")
        )

    def _explain(self, dag_id: str, run_id: str) -> str:
        failed = self.api.failed_tasks(dag_id, run_id)
        return (
            f"{dag_id} {run_id} failed in {', '.join(failed) or 'no task'}; its log: {self.api.run_url(dag_id, run_id)}"
        )

    # --- summary -----------------------------------------------------------------------------------------------------

    def shortfalls(self) -> list[str]:
        """What the loop should have done and did not; empty when all is well."""
        found = []
        for table, total in self.mart.totals().items():
            if total["in"] != total["trusted"] + total["quarantined"] + total["duplicates"]:
                found.append(f"{table}: in = {total['in']} is not the sum of its parts {total}")
        stopped = [
            f"{b['table_name']} {b['partition_date']}" for b in self.mart.batches() if b["status"] != "published"
        ]
        if stopped:
            found.append(f"partitions stopped: {stopped}")
        scored = {row["as_of"] for row in self.mart.scorings(MODEL)}
        judged = {row["as_of"] for row in self.mart.monitorings(MODEL)}
        for name, days in (("scored", scored), ("judged", judged)):
            if missing := [day.isoformat() for day in self.scenario.days if day not in days]:
                found.append(f"days not {name}: {missing}")
        allowed = [d["as_of"] for d in self.mart.decisions(subject=MODEL, kind="retrain") if d["outcome"] == "allowed"]
        gated = {d["as_of"] for d in self.mart.decisions(subject=MODEL, kind="gate")}
        if lost := [day.isoformat() for day in allowed if day not in gated]:
            found.append(f"retrains allowed without a gate's decision: {lost}")
        return found

    def summary(self, urls: dict[str, str], password: str) -> None:
        """Print what happened, and where to look."""
        out = self.console
        rows = Table(
            "table", "in", "trusted", "quarantined", "duplicates", title="Rows: in = trusted + quarantined + duplicates"
        )
        for name, total in self.mart.totals().items():
            rows.add_row(name, *(f"{total[k]:,}" for k in ("in", "trusted", "quarantined", "duplicates")))
        out.print(rows)

        champions = Table(
            "version", "in force from", "metric", "value", "baseline", "former champion", "on", title="Champions"
        )
        for row in self.mart.champion_history(MODEL):
            champions.add_row(str(row["version"]), str(row["effective_from"]), *_measured(row["metrics"]))
        out.print(champions)

        days = Table("as of", "version", "rows", "verdict", "retrain", title=f"{len(self.scenario.days)} days")
        scorings = {row["as_of"]: row for row in self.mart.scorings(MODEL) if row["is_current"]}
        retrains = {d["as_of"]: d for d in self.mart.decisions(subject=MODEL, kind="retrain")}
        for row in sorted(self.mart.monitorings(MODEL), key=lambda r: r["as_of"]):
            scoring, asked = scorings[row["as_of"]], retrains.get(row["as_of"])
            days.add_row(
                str(row["as_of"]),
                str(scoring["version"]),
                f"{scoring['rows']:,}",
                row["verdict"] + ("" if row["verdict"] == "ok" else f": {row['reasons'][0]}"),
                "" if asked is None else f"{asked['outcome']}: {asked['reasons'][0]}",
            )
        out.print(days)

        outcomes = [d["outcome"] for d in retrains.values()]
        out.print(
            f"Retrains: asked {len(outcomes)}, allowed {outcomes.count('allowed')}, refused {outcomes.count('refused')}"
        )
        for decision in reversed(self.mart.decisions(subject=MODEL, kind="gate")):
            out.print(
                f"Gate, as of {decision['as_of']}: [bold]{decision['outcome']}[/bold]. {'; '.join(decision['reasons'])}"
            )
        out.print("\nWhere to look")
        for name, value in urls.items():
            out.print(f"  {name:<14} {value}", soft_wrap=True, highlight=False, markup=False)
        out.print(f"  {'Login':<14} admin / {password}", highlight=False, markup=False)


def _measured(metrics: dict[str, Any]) -> tuple[str, ...]:
    """The gate's primary metric: its name; the champion's, the baseline's, the predecessor's; on which rows."""
    if "rollback_from" in metrics:
        return "", "", "", "", f"a rollback of version {metrics['rollback_from']}"
    metric = metrics["metric"]
    figures = ((metrics[who] or {}).get(metric) for who in ("challenger", "baseline", "champion"))
    return metric, *map(_number, figures), f"{metrics['rows']:,} rows, {metrics['first']} to {metrics['last']}"


def _number(estimate: dict[str, Any] | None) -> str:
    """`0.7410 [0.7301, 0.7522]`; the mart holds null for what is undefined."""
    if estimate is None or estimate["value"] is None:
        return ""
    low, high = ("unknown" if estimate[end] is None else f"{estimate[end]:.4f}" for end in ("low", "high"))
    return f"{estimate['value']:.4f} [{low}, {high}]"


QUERY = (
    "select carrier, count(*) as flights, round(100 * avg(probability)) as percent_late "
    "from flight_delay_current where flight_date = '{day}' group by carrier order by percent_late desc limit 5"
)


def run(stack: Stack, scenario: Scenario, console: Console) -> list[str]:
    """Run every stage on a started stack. Returns the shortfalls. Raises DemoFailed."""
    started = time.monotonic()
    with Bars(console) as bars:
        with bars.stage("Start the stack", 1) as step:
            step("object store and Airflow")
            stack.start()
            stack.wait_ready()
            step(stack.layout.ui_url, 1)
        demo = Demo(Settings.from_env(stack.environment), Api.login(stack.layout), scenario, console)
        with bars.stage("Publish the upstream's files", 1) as step:
            demo.publish_files(step)
        with bars.stage("Load history", 1) as step:
            demo.load_history(step)
        with bars.stage("Train the first champion", 1) as step:
            demo.train_first(step)
        with bars.stage("Replay day by day", len(scenario.days)) as step:
            demo.replay(step)
        with bars.stage("Maintain the lake", 1) as step:
            demo.tidy(step)
    demo.summary(
        {
            "Airflow UI": stack.layout.ui_url,
            "Drift report": f"{stack.layout.ui_url}/evergreen/reports/{MODEL}/{scenario.replay_until}",
            "Analysts' SQL": f'make sql Q="{QUERY.format(day=scenario.replay_until)}"',
        },
        stack.layout.secrets.passwords["admin"],
    )
    shortfalls = demo.shortfalls()
    for line in shortfalls:
        console.print(f"[bold red]not as it should be:[/bold red] {line}")
    console.print(f"{'Done' if not shortfalls else 'Ended'} in {time.monotonic() - started:.0f} s.")
    return shortfalls


def main(argv: list[str] | None = None) -> int:
    """Entry of `make demo`. Exit code 0 only if the loop did all it should."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--exit", action="store_true", help="stop the stack after the summary")
    arguments = parser.parse_args(argv)
    console = Console(soft_wrap=not sys.stdout.isatty())
    stack = Stack()
    try:
        with stack:
            shortfalls = run(stack, Scenario(), console)
            if not arguments.exit:
                console.print("The stack stays up. Ctrl-C ends it.")
                stack.serve()
            return 1 if shortfalls else 0
    except EvergreenError as error:
        console.print(f"[bold red]{type(error).__name__}[/bold red]: {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
