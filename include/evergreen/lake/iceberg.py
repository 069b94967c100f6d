"""Lake tables in Apache Iceberg: PyIceberg with a SQL catalog, data and metadata as objects of the lake bucket.

Commits are a compare-and-swap of one row of the catalog, so they are atomic on any S3. A write is one snapshot:
new files in, the files of the replaced partitions out. Data files are written once, whatever the commit has to retry.
"""

from __future__ import annotations

import datetime as dt
import io
import itertools
import random
import threading
import time
import uuid
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, partial, reduce
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as parquet
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    TableAlreadyExistsError,
    ValidationException,
)
from pyiceberg.expressions import AlwaysTrue, And, BooleanExpression, GreaterThanOrEqual, LessThanOrEqual, Or
from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream
from pyiceberg.io.pyarrow import ArrowScan, pyarrow_to_schema, schema_to_pyarrow, write_file
from pyiceberg.partitioning import PartitionField, PartitionFieldValue, PartitionKey, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import DataScan, FileScanTask, Table, WriteTask
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import EMPTY_DICT, Properties
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from include.evergreen.ahead import ahead
from include.evergreen.errors import NotFound, SchemaMismatch, Unavailable
from include.evergreen.lake.objects import S3Objects
from include.evergreen.lake.ports import PARTITION, Upkeep, newest
from include.evergreen.lake.rows import cast, chosen, prepare, ranges, stored_schema
from include.evergreen.settings import ObjectStoreSettings, Settings, Timeouts

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.snapshots import Snapshot

T = TypeVar("T")

COMMIT = "evergreen.commit"
"""Snapshot property that names a write: how a commit of unknown outcome is recognised afterwards."""

PROPERTIES = {
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
    "write.parquet.compression-codec": "zstd",
    "write.parquet.row-group-limit": "131072",
    "write.target-file-size-bytes": str(32 * 2**20),
    "write.metadata.metrics.default": "counts",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "2",
}
ATTEMPTS = 12
BATCH_ROWS = 65_536
READS = 4
"""How often a read begins again when upkeep has overtaken it."""
READ_AHEAD = 8
WRITERS = 3
PLANS = 16
"""Snapshots whose list of files is kept."""
SMALL_FILES = 4
"""A partition with more files than this, all below the target size together, is compacted."""
MANY_MANIFESTS = 30
HISTORY = 60
"""A table of more snapshots is cut to half of them by its next write: each one makes every commit slower."""
GRACE = dt.timedelta(hours=24)
"""Files that no snapshot ever referenced are kept this long: a commit may be on its way to them."""


class Overtaken(Unavailable):
    """Upkeep has deleted a file of the snapshot that was read: read again."""


# --- files -----------------------------------------------------------------------------------------------------------


class _Kept:
    """Small files that were read, the latest ones, up to so many bytes: a file of a table never changes, its name holds
    a UUID. A leak check and a training read the same days again and again."""

    def __init__(self, most: int, small: int) -> None:
        self._most, self._small, self._size = most, small, 0
        self._files: OrderedDict[tuple[str | None, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, place: tuple[str | None, str]) -> bytes | None:
        with self._lock:
            if place in self._files:
                self._files.move_to_end(place)
            return self._files.get(place)

    def put(self, place: tuple[str | None, str], data: bytes) -> None:
        if len(data) > self._small or not place[1].endswith(".parquet"):
            return
        with self._lock:
            self._size += len(data) - len(self._files.pop(place, b""))
            self._files[place] = data
            while self._size > self._most:
                self._size -= len(self._files.popitem(last=False)[1])


_KEPT = _Kept(64 * 2**20, 2**20)


class ObjectFileIO(FileIO):  # type: ignore[misc]
    """PyIceberg's files through `S3Objects`: one request per file, and the engine's own timeouts and errors."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        self._store = ObjectStoreSettings.model_validate(
            {
                "endpoint": properties.get("s3.endpoint"),
                "region": properties.get("s3.region", "us-east-1"),
                "access_key": properties.get("s3.access-key-id"),
                "secret_key": properties.get("s3.secret-access-key"),
            }
        )
        self._timeouts = Timeouts.model_validate(
            {
                "connect": properties.get("s3.connect-timeout", 5),
                "read": properties.get("s3.request-timeout", 20),
                "tries": properties.get("s3.tries", 2),
            }
        )

    def objects(self, location: str) -> tuple[S3Objects, str]:
        """The bucket and the key of `s3://bucket/key`."""
        scheme, _, rest = location.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme not in {"s3", "s3a"} or not key:
            raise ValueError(f"lake file: expected s3://bucket/key, found {location!r}")
        return S3Objects(self._store, bucket, self._timeouts), key

    def new_input(self, location: str) -> _Input:
        return _Input(self, location)

    def new_output(self, location: str) -> _Output:
        return _Output(self, location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        objects, key = self.objects(location if isinstance(location, str) else location.location)
        objects.delete([key])


class _Input(InputFile):  # type: ignore[misc]
    def __init__(self, files: ObjectFileIO, location: str) -> None:
        super().__init__(location)
        self._objects, self._key = files.objects(location)

    def __len__(self) -> int:
        return self._objects.size(self._key)

    def exists(self) -> bool:
        return self._objects.exists(self._key)

    def open(self, seekable: bool = True) -> InputStream:
        place = (self._objects.store.endpoint, self.location)
        data = _KEPT.get(place)
        if data is None:
            data = self._objects.get(self._key)
            _KEPT.put(place, data)
        return pa.BufferReader(data)  # type: ignore[return-value]


class _Output(OutputFile):  # type: ignore[misc]
    def __init__(self, files: ObjectFileIO, location: str) -> None:
        super().__init__(location)
        self._files = files
        self._objects, self._key = files.objects(location)
        self._size: int | None = None

    def __len__(self) -> int:
        return self._objects.size(self._key) if self._size is None else self._size

    def exists(self) -> bool:
        return self._objects.exists(self._key)

    def to_input_file(self) -> _Input:
        return _Input(self._files, self.location)

    def create(self, overwrite: bool = False) -> OutputStream:
        if not overwrite and self.exists():
            raise FileExistsError(f"{self.location}: expected no object, found one")
        return _Upload(self)

    def store(self, data: bytes) -> None:
        self._objects.put(self._key, data)
        self._size = len(data)


class _Upload(io.BytesIO):
    """Collects a file and puts it whole on close; a body that raises puts nothing."""

    def __init__(self, target: _Output) -> None:
        super().__init__()
        self._target = target
        self._failed = False

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._failed = kind is not None
        self.close()

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            if not self._failed:
                self._target.store(data)

    def __del__(self) -> None:
        """A stream that was never closed is an upload that was given up."""


# --- tables ----------------------------------------------------------------------------------------------------------


class _Catalog(SqlCatalog):  # type: ignore[misc]
    """The SQL catalog, its waits on PostgreSQL bounded."""

    def __init__(self, timeouts: Timeouts, properties: dict[str, str]) -> None:
        self._timeouts = timeouts
        super().__init__("evergreen", **properties)

    def _init_catalog(self) -> None:
        if self.engine.dialect.name == "postgresql":
            from include.evergreen.postgres import watch

            watch(self.engine, self._timeouts)
        self.engine.connect().close()  # what follows takes a dead server for an empty one, and asks it again
        super()._init_catalog()


class IcebergLake:
    """The lake on Iceberg. Safe for concurrent writers in threads and processes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._planned: OrderedDict[tuple[str, int], list[tuple[dt.date, FileScanTask]]] = OrderedDict()
        self._lock = threading.Lock()
        self._warehouse = f"s3://{settings.object_store.lake_bucket}/iceberg"

    # -- catalog

    @cached_property
    def _catalog_name(self) -> str:
        return make_url(self.settings.catalog_uri.get_secret_value()).render_as_string(hide_password=True)

    def _catalog_uri(self) -> str:
        """The catalog's URL with bounded waits, unless it sets its own."""
        url = make_url(self.settings.catalog_uri.get_secret_value())
        if url.get_backend_name() == "sqlite" and "timeout" not in url.query:
            url = url.update_query_dict({"timeout": "30"})
        return url.render_as_string(hide_password=False)

    @cached_property
    def _catalog(self) -> SqlCatalog:
        store, timeouts = self.settings.object_store, self.settings.timeouts
        properties = {
            "uri": self._catalog_uri(),
            "pool_pre_ping": "true",
            "warehouse": self._warehouse,
            "py-io-impl": f"{ObjectFileIO.__module__}.{ObjectFileIO.__name__}",
            "s3.endpoint": store.endpoint,
            "s3.region": store.region,
            "s3.access-key-id": store.access_key.get_secret_value() if store.access_key else None,
            "s3.secret-access-key": store.secret_key.get_secret_value() if store.secret_key else None,
            "s3.connect-timeout": str(timeouts.connect),
            "s3.request-timeout": str(timeouts.read),
            "s3.tries": str(timeouts.tries),
        }
        known = {name: value for name, value in properties.items() if value is not None}
        try:
            return _Catalog(timeouts, known)
        except SQLAlchemyError:
            return _Catalog(timeouts, known)  # another worker was creating the catalog's tables: they exist now

    @contextmanager
    def _errors(self, table: str) -> Iterator[None]:
        try:
            yield
        except NoSuchTableError as error:
            raise NotFound(f"lake table {table}: expected a table, found none in {self._catalog_name}") from error
        except SQLAlchemyError as error:
            found = " ".join(str(getattr(error, "orig", None) or error).split())
            where = self._catalog_name
            raise Unavailable(
                f"lake table {table}: expected an answer of the catalog {where}, found: {found}"
            ) from error

    def _table(self, table: str) -> Table:
        """Raises NotFound, Unavailable."""
        with self._errors(table):
            return self._catalog.load_table(table)

    def _find(self, table: str) -> Table | None:
        try:
            return self._table(table)
        except NotFound as error:
            if isinstance(error.__cause__, NoSuchTableError):
                return None
            raise

    def _create(self, table: str, schema: pa.Schema) -> Table:
        """Create the table, or load the one that another worker created first."""
        namespace, _, name = table.partition(".")
        if not namespace or not name or "." in name:
            raise ValueError(f"lake table: expected namespace.table, found {table!r}")
        with self._errors(table):
            with suppress(NamespaceAlreadyExistsError, IntegrityError):
                self._catalog.create_namespace(namespace)
            fields = _with_ids(schema)
            spec = PartitionSpec(
                PartitionField(fields.find_field(PARTITION).field_id, 1000, IdentityTransform(), PARTITION)
            )
            try:
                return self._catalog.create_table(
                    table, fields, f"{self._warehouse}/{namespace}/{name}", spec, properties=PROPERTIES
                )
            except TableAlreadyExistsError:
                return self._catalog.load_table(table)

    def _commit(self, table: str, attempt: Callable[[Table], T], landed: Callable[[Table], T | None]) -> T:
        """Run `attempt` on the fresh table until its commit lands.

        A conflict is known to have changed nothing. After any other failure the outcome is unknown: the table is read
        again and `landed` looks for the commit before another attempt.
        """
        failure: Exception | None = None
        for number in range(ATTEMPTS):
            if number:
                time.sleep(min(0.05 * 2**number, 2.0) * random.uniform(0.5, 1.5))  # noqa: S311
            fresh = self._table(table)
            if failure is not None and (result := landed(fresh)) is not None:
                return result
            try:
                with self._errors(table):
                    return attempt(fresh)
            except (CommitFailedException, ValidationException) as error:
                failure = error
            except Unavailable as error:
                fresh = self._table(table)
                if (result := landed(fresh)) is not None:
                    return result
                if failure is not None and isinstance(failure, Unavailable):
                    raise
                failure = error
        raise Unavailable(
            f"lake table {table}: expected a commit within {ATTEMPTS} attempts, found {failure}"
        ) from failure

    # -- writing

    def write(self, table: str, rows: pa.Table | Iterable[pa.Table], dates: Collection[dt.date]) -> int:
        """Replace the partitions `dates` by `rows` in one snapshot; its id.

        Of two writers of one partition the later commit stands, whole. Of tables, one after the other, a few data
        files are in memory at a time.

        Raises:
            ValueError: no table, a row outside `dates`.
            SchemaMismatch: a column whose values do not fit the table's type.
            Unavailable: the catalog or the object store.
        """
        tables = iter([rows] if isinstance(rows, pa.Table) else rows)
        first = next(tables, None)
        if first is None:
            raise ValueError(f"{table}: expected at least one table of rows, found none")
        parts, schema = prepare(table, first, dates), stored_schema(first.schema)
        found = self._find(table) or self._create(table, schema)
        found = self._grow(table, found, schema)
        target = _arrow(found.schema())
        split = itertools.chain([parts], (prepare(table, more, dates) for more in tables))
        fitting = ({day: cast(table, part, target) for day, part in some.items()} for some in split)
        key = str(uuid.uuid4())
        files = _write_files(found, fitting)
        where, long = _between_any(dates), False

        def landed(fresh: Table) -> int | None:
            for snapshot in fresh.metadata.snapshots:
                if snapshot.summary is not None and snapshot.summary.additional_properties.get(COMMIT) == key:
                    return int(snapshot.snapshot_id)
            return None

        def replace(fresh: Table) -> int:
            out = [task.file for task in fresh.scan(row_filter=where).plan_files()]
            current = fresh.current_snapshot()
            if current is not None and not out and not files:
                return int(current.snapshot_id)
            nonlocal long
            long = len(fresh.metadata.snapshots) > HISTORY
            transaction = _lean(fresh).transaction()
            with transaction.update_snapshot(snapshot_properties={COMMIT: key}).overwrite() as update:
                update.delete_by_predicate(where)
                for file in out:
                    update.delete_data_file(file)
                for file in files:
                    update.append_data_file(file)
            committed = transaction.commit_transaction()
            snapshot = landed(committed)
            if snapshot is None:
                raise CommitFailedException(f"{table}: the commit {key} is not in the table's history")
            return snapshot

        snapshot = self._commit(table, replace, landed)
        if long:
            # the rows are in; what can wait for the next write must not fail this one
            with suppress(Unavailable):
                self._merge_manifests(table)
                self._forget(table, HISTORY // 2)
        return snapshot

    def _grow(self, table: str, found: Table, schema: pa.Schema) -> Table:
        """Add the columns that the table lacks. A column is never changed or dropped, so files in flight stay valid."""

        def missing(fresh: Table) -> list[pa.Field]:
            known = set(fresh.schema().column_names)
            return [field for field in schema if field.name not in known]

        def add(fresh: Table) -> Table:
            new = missing(fresh)
            if new:
                types = _with_ids(pa.schema(new))
                with fresh.update_schema() as update:
                    for field in types.fields:
                        update.add_column(field.name, field.field_type)
            return fresh

        def landed(fresh: Table) -> Table | None:
            return None if missing(fresh) else fresh

        return self._commit(table, add, landed) if missing(found) else found

    # -- reading

    def _scan(self, table: str, snapshot: int | None) -> tuple[Table, DataScan]:
        found = self._table(table)
        if snapshot is not None and found.metadata.snapshot_by_id(snapshot) is None:
            known = len(found.metadata.snapshots)
            raise NotFound(f"lake table {table}: expected snapshot {snapshot}, found {known} other(s)")
        return found, found.scan(snapshot_id=snapshot)

    def _tasks(self, found: Table, scan: DataScan) -> list[tuple[dt.date, FileScanTask]]:
        """Every file of the scan's snapshot with its partition, in partition and written order; of the latest
        snapshots they are known already, which never change."""
        snapshot = scan.snapshot()
        if snapshot is None:
            return []
        place = (found.location(), snapshot.snapshot_id)
        with self._lock:
            known = self._planned.get(place)
        if known is None:
            dated = [(_day(task.file), task) for task in scan.plan_files()]
            known = sorted(dated, key=lambda one: (one[0], _order(one[1].file)))
        with self._lock:
            self._planned[place] = known
            self._planned.move_to_end(place)
            while len(self._planned) > PLANS:
                self._planned.popitem(last=False)
        return known

    def schema(self, table: str, snapshot: int | None = None) -> pa.Schema:
        """The columns of `read`. Raises NotFound (table, snapshot), Unavailable."""
        return _arrow(self._scan(table, snapshot)[1].projection())

    def _plan(
        self,
        table: str,
        since: dt.date | None,
        until: dt.date | None,
        columns: Sequence[str] | None,
        snapshot: int | None,
    ) -> tuple[pa.Schema, list[Callable[[], pa.Table]]]:
        """The schema of the rows, and one reader per file in partition and written order."""
        found, scan = self._scan(table, snapshot)
        arrow = chosen(table, _arrow(scan.projection()), columns)
        if columns is not None:
            scan = scan.select(*columns)
        first, last = since or dt.date.min, until or dt.date.max
        with self._errors(table):
            # a file is of one partition: no filter is left over, which PyIceberg would work out file by file
            tasks = [task for day, task in self._tasks(found, scan) if first <= day <= last]
        arrow_scan = ArrowScan(found.metadata, found.io, scan.projection(), scan.row_filter)

        def reader(task: FileScanTask) -> Callable[[], pa.Table]:
            def read() -> pa.Table:
                rows = _whole(found, task, arrow.names)
                if rows is not None and rows.schema.equals(arrow):
                    return rows
                return cast(table, arrow_scan.to_table([task]) if rows is None else rows, arrow)

            return read

        return arrow, [reader(task) for task in tasks]

    def read(
        self,
        table: str,
        since: dt.date | None = None,
        until: dt.date | None = None,
        columns: Sequence[str] | None = None,
        snapshot: int | None = None,
    ) -> pa.Table:
        """Rows by partition date, in written order. Raises NotFound (table, snapshot, column), Unavailable.

        A read of the current rows that upkeep takes the files from begins again.
        """
        for last in (*[False] * (READS - 1), True):
            try:
                with self._whole_reads(table, snapshot):
                    schema, readers = self._plan(table, since, until, columns, snapshot)
                    return pa.concat_tables([schema.empty_table(), *_ahead(readers)])
            except Overtaken:
                if last:
                    raise
        raise AssertionError("unreachable")

    def stream(
        self,
        table: str,
        since: dt.date | None = None,
        until: dt.date | None = None,
        columns: Sequence[str] | None = None,
        snapshot: int | None = None,
    ) -> pa.RecordBatchReader:
        """As `read`, holding at most nine files (each of at most 32 MiB in Arrow) at a time. It never begins again."""
        with self._whole_reads(table, snapshot):
            schema, readers = self._plan(table, since, until, columns, snapshot)

        def batches() -> Iterator[pa.RecordBatch]:
            with self._whole_reads(table, snapshot):
                for part in _ahead(readers):
                    yield from part.to_batches(max_chunksize=BATCH_ROWS)

        return pa.RecordBatchReader.from_batches(schema, batches())

    @contextmanager
    def _whole_reads(self, table: str, snapshot: int | None) -> Iterator[None]:
        """A file that is gone while the current rows are read was of a snapshot that upkeep expired meanwhile."""
        try:
            yield
        except NotFound as error:
            if snapshot is not None or not str(error).startswith(f"{self._warehouse}/"):
                raise
            raise Overtaken(
                f"lake table {table}: expected its files while it is read, found one gone: {error}"
            ) from error

    def counts(self, table: str) -> dict[dt.date, int]:
        """Rows per partition that has any, from the manifests alone; empty for a table that is not there."""
        found = self._find(table)
        if found is None:
            return {}
        rows: Counter[dt.date] = Counter()
        for task in found.scan().plan_files():
            rows[_day(task.file)] += task.file.record_count
        return {day: rows[day] for day in sorted(rows) if rows[day]}

    def snapshot(self, table: str) -> int | None:
        """The current snapshot id; None for a table that is not there or was never written."""
        found = self._find(table)
        current = found.current_snapshot() if found is not None else None
        return current.snapshot_id if current is not None else None

    def tables(self) -> list[str]:
        """Every table, sorted."""
        with self._errors("*"):
            return sorted(
                ".".join(name)
                for namespace in self._catalog.list_namespaces()
                for name in self._catalog.list_tables(namespace)
            )

    # -- upkeep

    def tag(self, table: str, snapshot: int, name: str) -> None:
        """Pin a snapshot; a name that is in use moves. Raises NotFound, Unavailable."""

        def landed(fresh: Table) -> bool | None:
            ref = fresh.metadata.refs.get(name)
            return True if ref is not None and ref.snapshot_id == snapshot else None

        def pin(fresh: Table) -> bool:
            if fresh.metadata.snapshot_by_id(snapshot) is None:
                known = len(fresh.metadata.snapshots)
                raise NotFound(f"lake table {table}: expected snapshot {snapshot}, found {known} other(s)")
            if landed(fresh) is None:
                fresh.manage_snapshots().create_tag(snapshot, name).commit()
            return True

        self._commit(table, pin, landed)

    def maintain(self, table: str, keep_snapshots: int = 10, now: dt.datetime | None = None) -> Upkeep:
        """Compact, expire, delete what nothing references. Changes no row. Raises NotFound, Unavailable.

        Files of expired snapshots go at once; files that no snapshot ever referenced only after a day, because a
        commit may be on its way to them. `files` and `bytes` count every object of the table.

        Args:
            now: by default what the newest object of the table tells of the store's clock, if that is behind ours.
        """
        if keep_snapshots < 1:
            raise ValueError(f"keep_snapshots: expected at least 1, found {keep_snapshots}")
        found = self._table(table)
        location = f"{found.location().rstrip('/')}/"
        objects, prefix = ObjectFileIO(found.io.properties).objects(location)
        before = {objects.uri(o.key): o for o in objects.list(prefix)}
        self._compact(table)
        self._merge_manifests(table)
        once, expired = self._expire(table, keep_snapshots)
        # listed before, referenced after: a file can only be deleted if the newest metadata does not name it
        listed = {objects.uri(o.key): o for o in objects.list(prefix)}
        live = _referenced(self._table(table))
        now = now or newest(listed.values())
        dead = {uri for uri, o in listed.items() if uri not in live and (uri in once or now - o.modified > GRACE)}
        objects.delete(sorted(listed[uri].key for uri in dead))
        left = {uri: o for uri, o in listed.items() if uri not in dead}
        return Upkeep(
            table,
            len(before),
            len(left),
            expired,
            sum(o.size for o in before.values()),
            sum(o.size for o in left.values()),
        )

    def _compact(self, table: str) -> None:
        """Rewrite every partition of many small files as few, in one snapshot; given up if a writer is quicker."""
        found = self._table(table)
        by_day: dict[dt.date, list[FileScanTask]] = defaultdict(list)
        for task in found.scan().plan_files():
            by_day[_day(task.file)].append(task)
        target = int(PROPERTIES["write.target-file-size-bytes"])
        small = {
            day: tasks
            for day, tasks in sorted(by_day.items())
            if len(tasks) > SMALL_FILES and sum(task.file.file_size_in_bytes for task in tasks) < target
        }
        if not small:
            return
        schema = _arrow(found.schema())
        scan = ArrowScan(found.metadata, found.io, found.schema(), AlwaysTrue())
        files: list[DataFile] = []
        for day, tasks in small.items():
            ordered = sorted(tasks, key=lambda task: _order(task.file))
            rows = pa.concat_tables([cast(table, scan.to_table([task]), schema) for task in ordered])
            files += _write_files(found, [{day: rows}])
        try:
            with self._errors(table):
                transaction = found.transaction()
                with transaction.update_snapshot(
                    snapshot_properties={"evergreen.compaction": "true"}
                ).overwrite() as update:
                    update.delete_by_predicate(_between_any(small))
                    for tasks in small.values():
                        for task in tasks:
                            update.delete_data_file(task.file)
                    for file in files:
                        update.append_data_file(file)
                transaction.commit_transaction()
        except (CommitFailedException, ValidationException):
            return  # the partition was replaced meanwhile: the next pass will see

    def _merge_manifests(self, table: str) -> None:
        """Every daily write adds a manifest, and a plan reads them all: merge them now and then."""
        found = self._table(table)
        current = found.current_snapshot()
        if current is None or len(current.manifests(found.io)) <= MANY_MANIFESTS:
            return
        try:
            with self._errors(table):
                transaction = found.transaction()
                with transaction.update_snapshot(
                    snapshot_properties={"evergreen.compaction": "manifests"}
                ).merge_append():
                    pass
                transaction.commit_transaction()
        except (CommitFailedException, ValidationException):
            return

    def _forget(self, table: str, keep: int) -> None:
        """Expire untagged snapshots beyond the newest `keep`; their files stay until `maintain`."""

        def expire(fresh: Table) -> bool:
            if ids := _doomed(fresh, keep):
                fresh.maintenance.expire_snapshots().by_ids(ids).commit()
            return True

        self._commit(table, expire, lambda fresh: None if _doomed(fresh, keep) else True)

    def _expire(self, table: str, keep: int) -> tuple[set[str], int]:
        """Expire untagged snapshots beyond the newest `keep`. What they and the kept ones referenced, and how many."""
        once: set[str] = set()
        gone: set[int] = set()

        def expire(fresh: Table) -> bool:
            ids = _doomed(fresh, keep)
            if ids:
                once.update(_referenced(fresh))
                gone.update(ids)
                fresh.maintenance.expire_snapshots().by_ids(ids).commit()
            return True

        self._commit(table, expire, lambda fresh: None if _doomed(fresh, keep) else True)
        return once, len(gone)


# --- small parts -----------------------------------------------------------------------------------------------------


def _lean(table: Table) -> Table:
    """The same table with its current snapshot only: to prepare a commit, PyIceberg copies the metadata a dozen times.

    The catalog applies the commit to the whole metadata.
    """
    current = table.current_snapshot()
    main = {name: ref for name, ref in table.metadata.refs.items() if name == MAIN_BRANCH}
    changes = {"snapshots": [] if current is None else [current], "snapshot_log": [], "refs": main}
    metadata = table.metadata.model_copy(update=changes)
    return Table(table.name(), metadata, table.metadata_location, table.io, table.catalog)


def _doomed(table: Table, keep: int) -> list[int]:
    """Snapshots that are neither tagged nor among the newest `keep`."""
    pinned = {ref.snapshot_id for ref in table.metadata.refs.values()}
    newest = sorted(table.metadata.snapshots, key=lambda s: (s.timestamp_ms, s.sequence_number or 0))[-keep:]
    pinned |= {snapshot.snapshot_id for snapshot in newest}
    return [s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id not in pinned]


def _with_ids(schema: pa.Schema) -> Schema:
    """An Iceberg schema of optional fields with fresh ids."""
    from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids
    from pyiceberg.schema import assign_fresh_schema_ids

    try:
        return assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(schema))
    except (TypeError, NotImplementedError, ValueError) as error:
        raise SchemaMismatch(f"expected column types that Iceberg can store, found {schema}: {error}") from error


def _arrow(schema: Schema) -> pa.Schema:
    return stored_schema(schema_to_pyarrow(schema, include_field_ids=False))


def _between(since: dt.date | None, until: dt.date | None) -> BooleanExpression:
    found: BooleanExpression = AlwaysTrue()
    if since is not None:
        found = And(found, GreaterThanOrEqual(PARTITION, since.isoformat()))
    if until is not None:
        found = And(found, LessThanOrEqual(PARTITION, until.isoformat()))
    return found


def _between_any(dates: Collection[dt.date]) -> BooleanExpression:
    return reduce(Or, [_between(first, last) for first, last in ranges(dates)])


def _day(file: DataFile) -> dt.date:
    value = file.partition[0]
    return value if isinstance(value, dt.date) else dt.date(1970, 1, 1) + dt.timedelta(days=int(value))


def _order(file: DataFile) -> tuple[int, str]:
    """Files of one write are numbered in row order: 00000-<number>-<uuid>.parquet."""
    name = file.file_path.rsplit("/", 1)[-1]
    number = name.split("-")[1] if name.count("-") > 1 else ""
    return (int(number) if number.isdigit() else 0, name)


def _files(parts: Iterable[dict[dt.date, pa.Table]], size: int) -> Iterator[tuple[dt.date, pa.Table]]:
    """Rows of one partition, of at most `size` bytes each, in their order; at best as many as fit."""
    held: dict[dt.date, pa.Table] = {}
    for some in parts:
        for day in [day for day in held if day not in some]:
            yield day, held.pop(day)
        for day, part in some.items():
            rows = pa.concat_tables([held.pop(day), part]) if day in held else part
            while rows.nbytes > size and rows.num_rows > 1:
                cut = max(1, rows.num_rows * size // rows.nbytes)
                yield day, rows.slice(0, cut)
                rows = rows.slice(cut)
            held[day] = rows
    yield from held.items()


def _write_files(table: Table, parts: Iterable[dict[dt.date, pa.Table]]) -> list[DataFile]:
    """Write rows by partition as Parquet, in parallel. They have the table's columns; nothing refers to the files
    yet."""
    schema, spec = table.schema(), table.spec()
    size = int(PROPERTIES["write.target-file-size-bytes"])
    write_uuid = uuid.uuid4()
    named = pyarrow_to_schema(_arrow(schema), name_mapping=schema.name_mapping)

    def write(number: int, day: dt.date, part: pa.Table) -> list[DataFile]:
        key = PartitionKey([PartitionFieldValue(spec.fields[0], day)], spec, schema)
        task = WriteTask(write_uuid, number, named, part.to_batches(), partition_key=key)
        return list(write_file(table.io, table.metadata, iter([task])))

    calls = (partial(write, number, day, part) for number, (day, part) in enumerate(_files(parts, size)))
    return [file for files in ahead(calls, WRITERS, "lake-write") for file in files]


def _whole(found: Table, task: FileScanTask, columns: Sequence[str]) -> pa.Table | None:
    """The columns of a file as they are, several times as fast as a scan; None for a file that needs one: rows were
    deleted, rows are to be filtered, or the table has grown a column since."""
    if task.delete_files or not isinstance(task.residual, AlwaysTrue):
        return None
    with found.io.new_input(task.file.file_path).open() as source:
        rows = parquet.ParquetFile(source).read(list(columns), use_threads=False)
        return rows if rows.num_columns == len(columns) else None


def _ahead(readers: Sequence[Callable[[], pa.Table]]) -> Iterator[pa.Table]:
    """Results in order, with at most `READ_AHEAD` files read before they are asked for."""
    if len(readers) < 2:
        yield from (reader() for reader in readers)
    else:
        yield from ahead(readers, READ_AHEAD, "lake-read")


def _referenced(table: Table) -> set[str]:
    """Every file that the table's metadata can reach: through any snapshot, its log, or its statistics."""
    metadata: TableMetadata = table.metadata
    found = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    found |= {statistics.statistics_path for statistics in metadata.statistics}
    found |= {statistics.statistics_path for statistics in metadata.partition_statistics}
    found |= {snapshot.manifest_list for snapshot in metadata.snapshots}

    def manifests(snapshot: Snapshot) -> list[Any]:
        return list(snapshot.manifests(table.io))

    with ThreadPoolExecutor(max_workers=READ_AHEAD) as pool:
        by_path = {m.manifest_path: m for some in pool.map(manifests, metadata.snapshots) for m in some}
        found |= set(by_path)
        for entries in pool.map(lambda m: m.fetch_manifest_entry(table.io, discard_deleted=True), by_path.values()):
            found |= {entry.data_file.file_path for entry in entries}
    return found
