"""What comes from outside is never believed: nothing is unpickled, SQL of a spec stays in its place, so do its keys."""

from __future__ import annotations

import ast
import datetime as dt
import hashlib
import os
import pickle
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from include.evergreen.errors import ChecksumMismatch, EvergreenError, SpecError
from include.evergreen.features.build import features, labels
from include.evergreen.lake import iceberg
from include.evergreen.lake.memory import MemoryLake
from include.evergreen.lake.objects import S3Objects
from include.evergreen.local.object_store import command, wait_ready
from include.evergreen.pipeline import scoring, training
from include.evergreen.platform import Platform
from include.evergreen.quality import deliveries
from include.evergreen.quality.casting import cast
from include.evergreen.query import connect, expression
from include.evergreen.settings import ObjectStoreSettings, Timeouts
from include.evergreen.specs import PROJECT, TableSpec
from include.evergreen.training.bundle import FILES, ModelBundle
from tests import examples
from tests.chaos.flights import SOURCE, TRAINED, UNTIL, Outside, quick, world
from tests.chaos.tally import Tally
from tests.conftest import free_port

SPEC = quick()
SCORED = TRAINED + dt.timedelta(days=8)
SOURCES = sorted(path for room in ("include", "dags", "plugins") for path in (PROJECT / room).rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "__import__", "compile"}
ATTRIBUTES = {"read_pickle", "to_pickle", "load_model", "unsafe_load", "full_load", "load_context"}
"""Of pandas, MLflow and YAML: they unpickle, or make objects of any class."""


# --- nothing is unpickled --------------------------------------------------------------------------------------------


def doubtful(tree: ast.AST) -> list[str]:
    """What could run code that data holds."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in UNPICKLERS]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNPICKLERS:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                found.append(f"{name}()")
            case ast.Call(func=ast.Attribute(attr="load", value=ast.Name(id="yaml")), args=[_, ast.Name(id="LOADER")]):
                pass  # of specs.py: a safe loader
            case ast.Call(func=ast.Attribute(attr="load", value=ast.Name(id="yaml" | "np" | "numpy" | "torch"))):
                found.append(ast.unparse(node.func))
            case ast.Attribute(attr=name) if name in ATTRIBUTES:
                found.append(ast.unparse(node))
            case ast.keyword(arg="allow_pickle" | "shell", value=ast.Constant(value=True)):
                found.append(f"{node.arg}=True")
    return found


def test_nothing_in_the_project_unpickles_or_evaluates(tally: Tally) -> None:
    with tally.fault("trust", "pickle, eval and shell in the source"):
        assert len(SOURCES) > 100
        guilty = {str(path): found for path in SOURCES if (found := doubtful(ast.parse(path.read_text())))}
        assert guilty == {}


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import load", "import cloudpickle.x", "eval(x)", "yaml.load(x, yaml.Loader)",
     "pd.read_pickle(x)", "mlflow.xgboost.load_model(x)", "np.load(x, allow_pickle=True)", "run(x, shell=True)"],
)  # fmt: skip
def test_the_scan_sees_what_it_looks_for(code: str) -> None:
    assert doubtful(ast.parse(code))


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_the_planted_pickle_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()


# --- planted pickles, tampered files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(s3_store: ObjectStoreSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = world(s3_store, tmp_path_factory.mktemp("trust"), SPEC)
    yield platform
    platform.mart.engine.dispose()


@contextmanager
def replaced(objects: Any, key: str, data: bytes) -> Iterator[None]:
    """An object with other bytes, for a while."""
    kept = objects.get(key)
    objects.put(key, data)
    try:
        yield
    finally:
        objects.put(key, kept)


def prefix(platform: Platform, version: int) -> str:
    """Where the files of a version are."""
    [found] = [v for v in platform.registry.versions(SPEC.name) if v.number == version]
    return found.tags["prefix"]


def flips(data: bytes, count: int) -> Iterator[bytes]:
    """The bytes with one bit turned, at places all over."""
    for i in range(count):
        place = len(data) * i // count
        yield data[:place] + bytes([data[place] ^ (1 << i % 8)]) + data[place + 1 :]


@pytest.mark.parametrize("name", FILES)
def test_a_model_whose_bytes_changed_is_not_loaded(made: Platform, tally: Tally, name: str) -> None:
    """Bits flipped, cut, empty, swapped for another version's or for a pickle: refused before anything is parsed."""
    first, second = prefix(made, 1), prefix(made, 2)
    key, kept = f"{second}/{name}", made.objects.get(f"{second}/{name}")
    other = next(file for file in FILES if file != name)
    spoilt = {f"bit {i} of 24": data for i, data in enumerate(flips(kept, 24))}
    spoilt |= {"cut": kept[: len(kept) // 2], "empty": b"", "longer": kept + b"\0"}
    spoilt |= {"of another version": made.objects.get(f"{first}/{name}"), other: made.objects.get(f"{second}/{other}")}
    for what, data in spoilt.items():
        said = rf"{SPEC.name} version 2, {name}: expected SHA-256"
        with (
            tally.fault("tampered model", f"{name}: {what}"),
            replaced(made.objects, key, data),
            pytest.raises(ChecksumMismatch, match=said),
        ):
            scoring.predict(made, SPEC, SOURCE, SCORED, "tampered", version=2)
    assert made.registry.load(SPEC.name, 2).sha256
    assert made.mart.scoring(SPEC.name, SCORED) is None


def test_a_whole_bundle_of_another_version_is_not_loaded(made: Platform, tally: Tally) -> None:
    with tally.fault("tampered model", "every file of another version"), ExitStack() as stack:
        for name in FILES:
            data = made.objects.get(f"{prefix(made, 1)}/{name}")
            stack.enter_context(replaced(made.objects, f"{prefix(made, 2)}/{name}", data))
        with pytest.raises(ChecksumMismatch, match="version 2"):
            made.registry.load(SPEC.name, 2)


def test_a_bundle_that_was_forged_as_a_whole_is_not_registered(made: Platform, tally: Tally) -> None:
    """Files and checksums that fit together, put in the place of the staged ones between two tasks."""
    as_of, key = UNTIL, "forged"
    built = training.build(made, SPEC, as_of, key, "chaos")
    fitted = training.fit(made, SPEC, as_of, key, built, None)
    leaks = training.check_leaks(made, SPEC, as_of, built)
    before = len(made.registry.versions(SPEC.name))
    with tally.fault("tampered model", "staged files of another training"), ExitStack() as stack:
        for name in FILES:
            data = made.objects.get(f"{prefix(made, 1)}/{name}")
            stack.enter_context(replaced(made.objects, f"{fitted['prefix']}/{name}", data))
        with pytest.raises(ChecksumMismatch, match=r"bundle.json: expected SHA-256"):
            training.decide(made, SPEC, as_of, key, built, fitted, leaks)
    assert len(made.registry.versions(SPEC.name)) == before
    assert not [row for row in made.mart.decisions(SPEC.name, "gate") if row["run_id"] == key]


def test_a_planted_pickle_never_runs(
    made: Platform, tally: Tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a file of ours is expected: the step fails, and the pickle leaves no mark."""
    monkeypatch.setattr(iceberg, "_KEPT", iceberg._Kept(0, 0))  # what a process has read it can give again
    mark = tmp_path / "mark"
    planted = pickle.dumps(Bomb(mark))
    staged = scoring.predict(made, SPEC, SOURCE, SCORED, "planted")
    built = training.build(made, SPEC, UNTIL, "planted", "chaos")
    fitted = training.fit(made, SPEC, UNTIL, "planted", built, None)
    [data_file] = Outside(made.settings, tmp_path / "cache").paths("trusted.planes")
    steps: list[tuple[str, Callable[[], Any]]] = [
        *((f"{prefix(made, 2)}/{name}", lambda: made.registry.load(SPEC.name, 2)) for name in FILES),
        *((f"{fitted['prefix']}/{name}", lambda: training._bundle(made, fitted)) for name in FILES),
        (f"{prefix(made, 2)}/lineage.json", lambda: made.registry.lineage(SPEC.name, 2)),
        (staged["key"], lambda: scoring.publish(made, SPEC, SOURCE, SCORED, staged, "planted")),
        (built["rows_key"], lambda: training.fit(made, SPEC, UNTIL, "planted", built, None)),
        (data_file, lambda: made.lake.read("trusted.planes")),
    ]
    for key, step in steps:
        with tally.fault("planted pickle", key.split("/")[-1]), replaced(made.objects, key, planted):
            with pytest.raises(Exception) as caught:
                step()
            assert not isinstance(caught.value, AssertionError)
        assert not mark.exists(), key
    assert made.mart.scoring(SPEC.name, SCORED) is None


def test_a_pickle_registered_as_a_model_never_runs(made: Platform, tally: Tally, tmp_path: Path) -> None:
    """With checksums that fit: XGBoost reads its own format and nothing else."""
    bundle = made.registry.load(SPEC.name, 1)
    forged = replace(bundle, booster=pickle.dumps(Bomb(tmp_path / "mark")))
    rows = features(made.lake, SPEC, SCORED, SCORED, cut=SCORED)
    with tally.fault("planted pickle", "a booster with a checksum that fits"):
        again = ModelBundle.from_files(forged.files(), hashlib.sha256(forged.files()["bundle.json"]).hexdigest())
        with pytest.raises(Exception, match=r"\w"):
            again.predict(rows)
    assert not (tmp_path / "mark").exists()


# --- SQL of a spec ---------------------------------------------------------------------------------------------------

SECRET = "the secret of another file"
REACHES = {
    "read_csv": "select * from read_csv('{file}')",
    "read_text": "select * from read_text('{file}')",
    "read_blob": "select * from read_blob('{file}')",
    "read_json": "select * from read_json('{file}')",
    "read_parquet": "select * from read_parquet('{file}')",
    "a file by its name": "select * from '{file}'",
    "glob": "select * from glob('{folder}/*')",
    "sniff_csv": "select * from sniff_csv('{file}')",
    "parquet_metadata": "select * from parquet_metadata('{file}')",
    "another bucket": "select * from read_csv('s3://other/key.csv')",
    "the network": "select * from read_csv('http://127.0.0.1:9/x.csv')",
    "a variable of the process": "select * from secret_rows",
    "copy to": "copy (select 1) to '{folder}/out.csv'",
    "copy from": "copy entities from '{file}'",
    "attach": "attach '{folder}/out.db' as other",
    "export": "export database '{folder}/out'",
    "install": "install httpfs",
    "load": "load httpfs",
    "create secret": "create persistent secret (type s3)",
    "open the door": "set enable_external_access = true",
    "unlock": "reset lock_configuration",
    "more threads": "set threads = 64",
    "extensions": "set autoinstall_known_extensions = true",
    "a home": "set home_directory = '{folder}'",
    "replacements": "set python_enable_replacements = true",
}


@pytest.fixture
def reach(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A file that nobody may read, and a folder that nobody may write to."""
    file = tmp_path / "secret.csv"
    file.write_text(f"said\n{SECRET}\n")
    yield {"file": str(file), "folder": str(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


@pytest.fixture(scope="module")
def shop() -> MemoryLake:
    lake = MemoryLake()
    examples.fill(lake, 8)
    return lake


DAY = examples.FIRST + dt.timedelta(days=6)


@pytest.mark.parametrize("name", REACHES)
def test_sql_of_a_spec_reaches_nothing(shop: MemoryLake, tally: Tally, reach: dict[str, str], name: str) -> None:
    """As the query, behind it, inside it, as label, as filter, as derived column."""
    secret_rows = pa.table({"said": [SECRET]})
    sql = REACHES[name].format(**reach)
    inner = sql if sql.startswith("select") else "select 1"
    one = f"(select max(x) from ({inner}) t(x))"
    spec = examples.model()
    orders = examples.source().tables["orders"]
    raw = deliveries.schema_of(orders).empty_table()

    def derived(text: str) -> Any:
        return cast(raw, TableSpec.model_validate({**orders.model_dump(), "derive": {"extra": text}}))

    def built(**changes: Any) -> Any:
        return features(shop, examples.model(**changes), DAY, DAY)

    def labelled(text: str) -> Any:
        label = {"table": "outcomes", "expression": text}
        return labels(shop, examples.model(label=label), DAY, DAY)

    ways: dict[str, Callable[[], Any]] = {
        "the query": lambda: built(sql=sql),
        "behind the query": lambda: built(sql=f"{examples.SQL.rstrip()}; {sql}"),
        "before the query": lambda: built(sql=f"{sql}; {examples.SQL}"),
        "behind the filter": lambda: built(entity={**spec.entity.model_dump(), "where": f"true); {sql}; select (1"}),
        "behind the label": lambda: labelled(f"true) as boolean) from outcomes; {sql}; --"),
        "behind a derived column": lambda: derived(f"1) from typed; {sql}; select (1"),
    }
    if inner is sql:
        ways |= {
            "beside the query": lambda: built(sql=f"select f.*, {one} as extra from ({examples.SQL}) f"),
            "in the filter": lambda: built(entity={**spec.entity.model_dump(), "where": f"{one} is null"}),
            "in the label": lambda: labelled(f"{one} is not null"),
            "in a derived column": lambda: derived(one),
        }
    for way, act in ways.items():
        with tally.fault("SQL of a spec", f"{name}: {way}"):
            with pytest.raises((EvergreenError, duckdb.Error)) as caught:
                act()
            assert SECRET not in str(caught.value)
    assert secret_rows.num_rows == 1


def test_a_connection_stays_shut(tally: Tally, reach: dict[str, str]) -> None:
    for name, sql in REACHES.items():
        fault = tally.fault("SQL of a spec", f"a connection: {name}")
        with fault, connect() as connection, pytest.raises(duckdb.Error):
            connection.execute(sql.format(**reach)).fetchall()


# --- identifiers and keys --------------------------------------------------------------------------------------------

QUICK = hypothesis_settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
NASTY = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ['a"b', "a'b", "a b", "a;b", "a--b", "a/*b", "Select", "a\n", "a.b", "\u0430", "a\x00", "../a", "a%b", "{a}",
         "_a", "1a", "a" * 49, "a\\b", "\uff41", "a)", "a,b", "x; drop table ledger", 'x" as y, (select 1) as "z']
    ),
)  # fmt: skip
ORDERS = examples.source().tables["orders"].model_dump()


def plain(name: str) -> bool:
    """What a name of a spec may be."""
    small = "abcdefghijklmnopqrstuvwxyz"
    return 0 < len(name) <= 48 and name[0] in small and set(name) <= set(small + "0123456789_")


@QUICK
@given(name=NASTY, place=st.sampled_from(["columns", "derive", "key", "date_column", "name", "freshness"]))
def test_a_hostile_name_makes_no_spec(name: str, place: str) -> None:
    changes: dict[str, Any] = {
        "columns": {"columns": {**ORDERS["columns"], name: {"type": "string"}}},
        "derive": {"derive": {name: "1"}},
        "key": {"key": [name]},
        "date_column": {"date_column": name},
        "name": {"name": name},
        "freshness": {"freshness": {"column": name, "hours": 1}},
    }[place]
    try:
        TableSpec.model_validate({**ORDERS, **changes})
    except ValidationError:
        return
    assert plain(name)


@pytest.mark.parametrize("name", ["order", "select", "group", "table", "limit", "end", "user", "null"])
def test_a_reserved_word_is_a_name_like_any_other(tally: Tally, name: str) -> None:
    """As key of the entity, as feature and as column of a source."""
    with tally.fault("SQL of a spec", f"a column named {name}"):
        lake = MemoryLake()
        orders, outcomes = examples.rows(3)
        lake.write("trusted.orders", orders.rename_columns({"order_id": name}), examples.dates(3))
        lake.write("trusted.outcomes", outcomes.rename_columns({"order_id": name}), examples.dates(3))
        feature = "limit" if name != "limit" else "from"
        spec = examples.model(
            entity={"table": "orders", "key": [name]},
            features={feature: {}},
            gate={},
            sql=f'select e."{name}", e.as_of, amount as "{feature}" from entities e join orders o '
            f'on o."{name}" = e."{name}"',
        )
        day = examples.FIRST + dt.timedelta(days=1)
        assert features(lake, spec, day, day).num_rows == labels(lake, spec, day, day).num_rows == 60


@QUICK
@given(text=st.one_of(st.text(max_size=40), st.text(alphabet="()';-,1a /*\"", max_size=12)))
def test_an_expression_is_one_value_or_refused(text: str) -> None:
    """Whatever it is, the query around it gives its one row with its one column more."""
    with connect() as connection:
        try:
            inner = expression(connection, text, "x")
        except SpecError:
            return
        try:
            found = connection.execute(f"select 1 as a, try({inner}) as b from (select 2 as a) t where true")
        except duckdb.Error:
            return
        if inner != "(*)":
            assert len(found.description) == 2 and found.fetchone()[0] == 1


OUTSIDE = [
    "../lake/{date}.csv", "a/../../lake/{date}.csv", "/etc/{date}.csv", "s3://lake/{date}.csv", "file:///etc/{date}",
    "a//{date}.csv", "./{date}.csv", "a/./{date}.csv", "a\\..\\{date}.csv", "a/{date}/..", "a\n/{date}.csv",
    "a\x00{date}.csv", "http://127.0.0.1/{date}", "~/{date}.csv", "a/{date}.csv/", "%2e%2e/{date}.csv",
    "a/{date}/../../x.csv",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=range(len(OUTSIDE)))
def test_a_path_out_of_the_bucket_makes_no_spec(tally: Tally, path: str) -> None:
    with tally.fault("keys of a spec", path), pytest.raises(ValidationError, match="path: expected"):
        TableSpec.model_validate({**ORDERS, "path": path})


@pytest.mark.parametrize("mark", ["", ",,", '"', "\n", "\r", "\x00", "é"])
def test_a_delimiter_is_one_plain_character(tally: Tally, mark: str) -> None:
    with tally.fault("keys of a spec", f"delimiter {mark!r}"), pytest.raises(ValidationError, match="delimiter"):
        TableSpec.model_validate({**ORDERS, "delimiter": mark})


def test_a_link_leads_out_of_no_bucket(tally: Tally, tmp_path: Path) -> None:
    """Files of the machine, linked into the folder of the embedded store, are no objects."""
    for name in ("landing", "lake", "elsewhere"):
        (tmp_path / "data" / name).mkdir(parents=True) if name != "elsewhere" else (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / "2024-01-01.csv").write_text(SECRET)
    (tmp_path / "data" / "landing" / "shop").mkdir()
    (tmp_path / "data" / "landing" / "shop" / "orders").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "landing" / "2024-01-01.csv").symlink_to(tmp_path / "elsewhere" / "2024-01-01.csv")
    (tmp_path / "data" / "other").symlink_to(tmp_path / "elsewhere")
    access, secret, port = secrets.token_hex(8), secrets.token_hex(16), free_port()
    argv, env = command(tmp_path / "data", port, access, secret)
    server = subprocess.Popen(argv, env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_ready(port, timeout=30)
        store = ObjectStoreSettings(endpoint=f"http://127.0.0.1:{port}", access_key=access, secret_key=secret)
        landing = S3Objects(store, "landing", Timeouts())
        with tally.fault("keys of a spec", "a link in the bucket"):
            assert landing.list() == []
            assert deliveries.find(landing, examples.source().tables["orders"], examples.FIRST) == []
        for key in ("shop/orders/2024-01-01.csv", "2024-01-01.csv", "../elsewhere/2024-01-01.csv", "../lake/x"):
            with tally.fault("keys of a spec", f"a link at {key}"), pytest.raises(EvergreenError) as caught:
                landing.get(key)
            assert SECRET not in str(caught.value)
        with tally.fault("keys of a spec", "a link as a bucket"), pytest.raises(EvergreenError):
            S3Objects(store, "other", Timeouts()).get("2024-01-01.csv")
    finally:
        server.terminate()
        server.wait(10)
