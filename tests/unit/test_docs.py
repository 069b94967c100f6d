"""What the documents say is there: links, runbooks, make targets, DAG ids, spec fields, compose variables."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from include.evergreen import specs
from include.evergreen.orchestration.defaults import RUNBOOKS

PROJECT = specs.PROJECT
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
RUNBOOK_HEADINGS = ["What you see", "What it means", "What to do", "When to wake somebody"]
ADR_HEADINGS = ["Context", "Decision", "Consequences", "Alternatives"]
VERDICT_RUNBOOKS = {
    "drift-verdict.md",
    "performance-drop.md",
    "broken-data.md",
    "stack-part-fell.md",
    "retrain-halted.md",
    "run-late.md",
}

LINK = re.compile(r"\]\(([^)\s]+)\)")
MAKE = re.compile(r"(?:`|^)make(?: -s)? ([a-z-]+)", re.MULTILINE)
DAG_ID = re.compile(r"\b((?:ingest|score|monitor|train|request|approve)__[a-z][a-z0-9_]*)")
QUERY = re.compile(r"^```sql\n(select.*?|--.*?)^```|`(select [^`]+)`", re.MULTILINE | re.DOTALL)
FENCED_YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
HYPOTHETICAL = {"shop", "parcel_missed"}
"""The source and the model that the ML engineer's guide invents."""


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """The fragments GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def headings(path: Path) -> list[str]:
    return re.findall(r"^## (.+)$", text(path), re.MULTILINE)


def broken_links(document: Path) -> Iterator[str]:
    for link in LINK.findall(text(document)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, fragment = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        if not target.is_file():
            yield f"{link}: no such file"
        elif fragment and fragment not in anchors(target):
            yield f"{link}: no such heading"


def dag_ids() -> set[str]:
    """What the factories of dags/ make of the specs."""
    models = specs.models()
    return {
        *(f"ingest__{name}" for name in specs.sources()),
        *(f"{verb}__{name}" for name in models for verb in ("score", "monitor", "train")),
        *(f"request__{name}" for name, model in models.items() if model.training.schedule),
        *(f"approve__{name}" for name, model in models.items() if model.approval == "human"),
    }


def yaml_blocks(name: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(block) for block in FENCED_YAML.findall(text(PROJECT / "docs" / name))]


def test_documents_are_found() -> None:
    names = {path.relative_to(PROJECT).as_posix() for path in DOCUMENTS}
    assert {"README.md", "docs/operator.md", "docs/runbooks/ingest-stopped.md"} <= names
    assert sum(len(LINK.findall(text(path))) for path in DOCUMENTS) > 40


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_relative_links_resolve(document: Path) -> None:
    assert list(broken_links(document)) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Title\n")
    page = tmp_path / "page.md"
    page.write_text("[a](missing.md) [b](other.md#title) [c](other.md#gone) [d](https://example.org/missing)")
    assert list(broken_links(page)) == ["missing.md: no such file", "other.md#gone: no such heading"]


def test_every_alert_has_its_runbook() -> None:
    named = {PROJECT / path for path in RUNBOOKS.values()}
    written = set((PROJECT / "docs/runbooks").glob("*.md"))
    assert named <= written
    assert {path.name for path in written - named} == VERDICT_RUNBOOKS


@pytest.mark.parametrize("runbook", sorted((PROJECT / "docs/runbooks").glob("*.md")), ids=lambda path: path.stem)
def test_runbooks_have_the_fixed_headings(runbook: Path) -> None:
    assert headings(runbook) == RUNBOOK_HEADINGS


@pytest.mark.parametrize("adr", sorted((PROJECT / "docs/adr").glob("*.md")), ids=lambda path: path.stem)
def test_adrs_are_numbered_dated_and_short(adr: Path) -> None:
    lines = text(adr).splitlines()
    assert lines[0].startswith(f"# {int(adr.name[:4])}. ")
    assert re.match(r"Date: \d{4}-\d{2}-\d{2}\. Status: (accepted(; replaces \d+)?|replaced by \d+)\.", lines[2])
    assert headings(adr) == ADR_HEADINGS
    assert len(lines) <= 60, "one page"


def test_adr_numbers_have_no_gap() -> None:
    numbers = [int(path.name[:4]) for path in sorted((PROJECT / "docs/adr").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_replaced_adr_and_its_heir_name_each_other() -> None:
    said: dict[str, set[tuple[int, int]]] = {"replaces": set(), "replaced by": set()}
    for path in (PROJECT / "docs/adr").glob("*.md"):
        for word, number in re.findall(r"^Date: .* (replaces|replaced by) (\d+)\.", text(path), re.MULTILINE):
            said[word].add((int(path.name[:4]), int(number)))
    assert said["replaces"]
    assert said["replaces"] == {(heir, old) for old, heir in said["replaced by"]}


def test_architecture_lists_every_adr() -> None:
    listed = re.findall(r"^\| \[(\d+)\]\(adr/([^)]+)\)", text(PROJECT / "docs/architecture.md"), re.MULTILINE)
    assert listed == [(str(int(p.name[:4])), p.name) for p in sorted((PROJECT / "docs/adr").glob("*.md"))]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text(PROJECT / "Makefile"), re.MULTILINE))
    named = {(path.name, target) for path in DOCUMENTS for target in MAKE.findall(text(path))}
    assert ("README.md", "demo") in named
    assert {(name, target) for name, target in named if target not in targets} == set()


def test_every_make_target_is_in_help_and_in_the_readme() -> None:
    makefile = text(PROJECT / "Makefile")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    helped = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert helped == set(phony.split()) - {"install-dev"}
    assert helped - {"install"} - set(MAKE.findall(text(PROJECT / "README.md"))) == set()


def test_dag_ids_exist() -> None:
    known = dag_ids()
    named = {
        (path.name, found)
        for path in DOCUMENTS
        for found in DAG_ID.findall(text(path))
        if found.split("__")[1] not in {"source", "model", *HYPOTHETICAL}
    }
    assert ("operator.md", "train__flight_delay") in named
    assert {(name, found) for name, found in named if found not in known} == set()


def test_the_guide_lists_every_dag() -> None:
    guide = text(PROJECT / "docs/operator.md").split("\n## The DAGs\n")[1].split("\n## ")[0]
    assert [name for name in sorted(dag_ids()) if f"`{name}`" not in guide] == []
    factories = {
        verb for path in (PROJECT / "dags").glob("*.py") for verb in re.findall(r'dag_id=f"(\w+)__', text(path))
    }
    assert factories
    assert [verb for verb in factories if f"| `{verb}__" not in guide] == []
    singles = [path.stem for path in (PROJECT / "dags").glob("*.py") if f'dag_id="{path.stem}"' in text(path)]
    assert singles
    assert [name for name in singles if f"`{name}`" not in guide] == []


def guide_example(*changes: dict[str, Any]) -> tuple[specs.SourceSpec, specs.ModelSpec]:
    """The guide's source and model, the model with sections of it changed."""
    source, model = yaml_blocks("ml-engineer.md")[:2]
    for change in changes:
        model = {**model, **change}
    sql = text(PROJECT / "docs/ml-engineer.md").split("```sql\n")[1].split("```")[0]
    return specs.SourceSpec.model_validate(source), specs.ModelSpec.model_validate({**model, "sql": sql})


def test_the_guides_model_fits_its_source() -> None:
    source, model = guide_example()
    assert model.source == source.name
    assert {model.entity.table, model.label.table} <= set(source.tables)
    assert set(model.entity.key) <= set(source.tables[model.entity.table].columns)


def test_the_guides_changes_fit_its_model() -> None:
    changes = yaml_blocks("ml-engineer.md")[2:]
    _, model = guide_example(*changes)
    assert model.approval == "human"
    assert model.gate.metric == "value"


def test_the_guides_sums_of_costs_are_right() -> None:
    from include.evergreen.training.metrics import costs_of, saved

    _, model = guide_example(*yaml_blocks("ml-engineer.md")[2:])
    assert model.costs
    section = text(PROJECT / "docs/ml-engineer.md").split("\n## Costs\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| [\d.]+ \| (\d+) \| (\d+) \| (\d+) \| (-?\d+) \|$", section, re.MULTILINE)
    assert len(rows) == 3
    for hits, misses, false_alarms, value in (map(int, row) for row in rows):
        label = np.repeat([1, 1, 0, 0], [hits, misses, false_alarms, 900 - false_alarms])
        decision = np.repeat([True, False, True, False], [hits, misses, false_alarms, 900 - false_alarms])
        assert len(label) == 1000
        assert saved(label, decision, costs_of(model.costs)).sum() == value


def test_the_guides_features_run_and_see_no_future() -> None:
    import pyarrow as pa

    from include.evergreen.features.build import check_leaks, features, labelled, labels
    from include.evergreen.lake.memory import MemoryLake

    source, model = guide_example()
    days = [dt.date(2026, 1, 1) + dt.timedelta(days=i) for i in range(14)]
    rows = [(day, parcel, "north" if parcel % 2 else "south") for day in days for parcel in range(6)]
    known = {name: table.available.hours_after for name, table in source.tables.items()}
    lake = MemoryLake()
    for name, extra in (
        ("parcels", {"depot": [depot for *_, depot in rows], "weight": [float(parcel) for _, parcel, _ in rows]}),
        ("deliveries", {"missed": [day.day * (parcel + 1) % 5 == 0 for day, parcel, _ in rows]}),
    ):
        midnight = [dt.datetime.combine(day, dt.time()) for day, *_ in rows]
        common = {
            "parcel_id": pa.array([parcel for _, parcel, _ in rows], pa.int64()),
            "plan_date": pa.array([day for day, *_ in rows], pa.date32()),
            "partition_date": pa.array([day for day, *_ in rows], pa.date32()),
            "available_at": pa.array([m + dt.timedelta(hours=known[name]) for m in midnight], pa.timestamp("us")),
        }
        lake.write(f"trusted.{name}", pa.table({**common, **extra}), days)
    found = features(lake, model, days[9], days[9])
    assert found.num_rows == 6
    assert found["depot_missed_7d"].null_count == 0
    assert check_leaks(lake, model, [days[8], days[10]]) == 12
    assert labelled(found, labels(lake, model, days[9], days[9], cut=days[10]), model).num_rows == 6


@pytest.mark.parametrize(
    "spec",
    [
        specs.TableSpec,
        specs.ModelSpec,
        specs.Label,
        specs.Training,
        specs.Gate,
        specs.FrozenHoldout,
        specs.Costs,
        specs.Scoring,
        specs.Monitoring,
        specs.Retrain,
    ],
    ids=lambda spec: spec.__name__,
)
def test_the_guide_names_every_field(spec: type[specs.Spec]) -> None:
    guide = text(PROJECT / "docs/ml-engineer.md")
    given = {"name", "description", "owner", "source", "start_date", "end_date", "sql"}
    assert [field for field in spec.model_fields if field not in given and f"`{field}`" not in guide] == []


def queries() -> list[tuple[str, str]]:
    """(document, statement) of every SQL query on the mart that the documents show."""
    found = []
    for path in DOCUMENTS:
        for block, inline in QUERY.findall(text(path)):
            if "from entities" in block:
                continue  # a feature query: another test runs it
            statements = (block or inline).replace("<model>", "flight_delay").replace("parcel_missed", "flight_delay")
            found += [(path.name, part.strip()) for part in statements.split(";") if part.strip()]
    return found


def test_the_documents_queries_run(tmp_path: Path) -> None:
    import sqlalchemy as sa

    from include.evergreen.mart.store import Mart

    mart = Mart(f"sqlite:///{tmp_path}/mart.db")
    mart.create()
    mart.ensure_model(specs.models()["flight_delay"], specs.sources()["nyc_flights"])
    names = [name for name, _ in queries()]
    assert {"README.md", "analysts.md", "on-call.md", "drift-verdict.md", "ml-engineer.md"} <= set(names)
    with mart.engine.connect() as connection:
        for name, statement in queries():
            try:
                connection.execute(sa.text(statement)).all()
            except sa.exc.DBAPIError as error:
                raise AssertionError(f"{name}: {statement}") from error


def test_the_cluster_lock_agrees_with_the_main_one() -> None:
    pins = [
        dict(re.findall(r"^([a-z0-9.-]+)==([^ \n]+)", text(PROJECT / name), re.MULTILINE))
        for name in ("requirements.txt", "requirements-cluster.txt")
    ]
    main, cluster = pins
    shared = set(main) & set(cluster)
    assert "apache-airflow-core" in shared
    assert {name: cluster[name] for name in shared} == {name: main[name] for name in shared}


def test_compose_and_its_example_name_the_same_variables() -> None:
    compose, example = text(PROJECT / "docker-compose.yaml"), text(PROJECT / ".env.example")
    needed = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):\?", compose))
    optional = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+):-", compose))
    given = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", example, re.MULTILINE))
    assert needed
    assert set(given) == needed | optional
    assert {name: given[name] for name in needed} == dict.fromkeys(needed, ""), "a secret has a usable default"


def test_compose_publishes_the_ui_alone_and_on_loopback() -> None:
    services = yaml.safe_load(text(PROJECT / "docker-compose.yaml"))["services"]
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert published == {"api-server": ["127.0.0.1:${EVERGREEN_PORT_UI:-8080}:8080"]}


def test_compose_services_are_watched_and_pinned() -> None:
    services = yaml.safe_load(text(PROJECT / "docker-compose.yaml"))["services"]
    for name, service in services.items():
        assert re.search(r":\d+\.\d+", service["image"]), f"{name}: {service['image']}"
        once = service["restart"] == "no"
        assert once or service["restart"] == "unless-stopped", name
        assert once or "test" in service["healthcheck"], name
