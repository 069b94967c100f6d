"""deploy/aws/: policies that grant what the engine uses, connections that need no other change."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from include.evergreen import specs
from include.evergreen.orchestration.connections import CATALOG, LAKE, MART, REGISTRY, resolve

AWS = specs.PROJECT / "deploy" / "aws"
POLICIES = sorted(AWS.glob("*-role.json"))
DOCUMENTS = sorted(AWS.glob("*.json"))
KNOWN = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:AbortMultipartUpload"}
WRITES = KNOWN - {"s3:GetObject", "s3:ListBucket"}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def statements(name: str) -> list[dict[str, Any]]:
    document = json.loads((AWS / name).read_text(encoding="utf-8"))
    assert document["Version"] == "2012-10-17"
    return list(document["Statement"])


def granted(name: str) -> set[tuple[str, str]]:
    """(action, resource) pairs that a policy allows."""
    return {
        (action, resource)
        for statement in statements(name)
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    }


def complaints(statement: dict[str, Any]) -> list[str]:
    """What is too wide in a statement that allows something."""
    found = [key for key in ("NotAction", "NotResource", "NotPrincipal") if key in statement]
    if statement["Effect"] != "Allow":
        return found
    found += [f"action {action}" for action in listed(statement.get("Action", "*")) if "*" in action]
    for resource in listed(statement.get("Resource", "*")) if "Principal" not in statement else []:
        if not re.fullmatch(r"arn:aws:s3:::\$\{[A-Z_]+\}(/[a-z_]+(/[a-z_]+)*/\*)?", resource):
            found.append(f"resource {resource}")
    if "*" in str(statement.get("Principal", "")):
        found.append("principal *")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_statement_allows_everything(path: Any) -> None:
    assert [found for statement in statements(path.name) for found in complaints(statement)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"Action": "*"},
        {"Action": ["s3:GetObject", "s3:*"]},
        {"Resource": "*"},
        {"Resource": ["arn:aws:s3:::*"]},
        {"Resource": ["arn:aws:s3:::${LAKE_BUCKET}/*"]},
        {"NotAction": "s3:DeleteBucket"},
        {"NotResource": "arn:aws:s3:::other"},
        {"Principal": {"AWS": "*"}},
    ],
    ids=str,
)
def test_what_is_too_wide_is_seen(change: dict[str, Any]) -> None:
    fine = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::${LAKE_BUCKET}/iceberg/*"]}
    assert complaints(fine) == []
    assert complaints({**fine, **change})


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_roles_use_known_actions_on_objects_or_on_a_bucket(path: Any) -> None:
    """An object's action on a bucket, or a bucket's on objects, grants nothing: a typing error."""
    for action, resource in granted(path.name):
        assert action in KNOWN
        assert (action == "s3:ListBucket") != resource.endswith("/*"), (action, resource)


def test_tasks_only_read_deliveries_and_delete_only_what_maintenance_deletes() -> None:
    found = granted("task-role.json")
    assert {action for action, resource in found if "LANDING" in resource} == {"s3:GetObject", "s3:ListBucket"}
    deleted = {resource.split("}/")[1] for action, resource in found if action == "s3:DeleteObject"}
    assert deleted == {"iceberg/*", "staging/*"}


def test_deliveries_of_every_source_are_readable() -> None:
    readable = [
        resource.split("}/")[1].removesuffix("*")
        for action, resource in granted("task-role.json")
        if action == "s3:GetObject" and "LANDING" in resource
    ]
    paths = [table.path for source in specs.sources().values() for table in source.tables.values()]
    assert paths
    assert [path for path in paths if not path.startswith(tuple(readable))] == []


def test_analysts_write_nothing_and_see_no_model_no_report_and_no_quarantine() -> None:
    found = granted("analyst-role.json")
    assert {action for action, _ in found} & WRITES == set()
    read = {resource.split("}/")[1] for action, resource in found if action == "s3:GetObject"}
    assert read == {"iceberg/predictions/*", "iceberg/trusted/*"}


def test_the_upstream_only_delivers() -> None:
    assert {action for action, _ in granted("upstream-role.json")} == {"s3:PutObject", "s3:AbortMultipartUpload"}
    assert all("LANDING" in resource for _, resource in granted("upstream-role.json"))


def test_the_role_is_taken_by_tasks_of_one_account_only() -> None:
    [statement] = statements("task-trust.json")
    assert statement["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
    assert statement["Condition"]["StringEquals"] == {"aws:SourceAccount": "${ACCOUNT_ID}"}


# --- connections -----------------------------------------------------------------------------------------------------


@dataclass
class Given:
    """A connection as Airflow reads it from its environment."""

    extra_dejson: dict[str, Any]
    conn_type: str = ""
    login: str | None = None
    password: str | None = None
    rest: dict[str, Any] = field(default_factory=dict)


def connections() -> dict[str, Given]:
    found = {}
    for name, text in re.findall(
        r"^AIRFLOW_CONN_([A-Z0-9_]+)=(.+)$", (AWS / "connections.env").read_text(), re.MULTILINE
    ):
        value = json.loads(text)
        found[name.lower()] = Given(value.pop("extra"), value.pop("conn_type"), rest=value)
    return found


def test_four_connections_are_all_that_changes() -> None:
    found = connections()
    assert set(found) == {LAKE, CATALOG, MART, REGISTRY}
    assert [name for name, given in found.items() if given.rest] == []
    settings = resolve(found, "http://127.0.0.1:8080", {})  # none of the variables of airflow_settings.yaml is set
    store = settings.object_store
    assert (store.endpoint, store.access_key, store.secret_key) == (None, None, None), (
        "the role of the task grants access"
    )
    assert (store.region, store.landing_bucket, store.lake_bucket) == ("{region}", "{landing}", "{lake}")
    for uri in (settings.catalog_uri, settings.mart_uri):
        assert "sslmode=require" in uri.get_secret_value()
