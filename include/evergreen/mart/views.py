"""The analysts' views: what each is, says and selects. Views, dictionary and contract are made from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from include.evergreen.mart.models import model_tables
from include.evergreen.mart.schema import cohorts, ledger, scorings, view_definitions
from include.evergreen.specs import ModelSpec, SourceSpec

READ_ROLE = "analyst_read"
"""On PostgreSQL: a role of this name may read every view; analysts are its members."""
PER_MODEL = ("current", "history", "outcomes", "daily")


@dataclass(frozen=True)
class Definition:
    """One view. `says` what columns mean; one that it does not name is explained by its own comment."""

    name: str
    about: str
    query: sa.Select[Any]
    says: dict[str, str]

    def says_of(self, column: Any) -> str:
        """What a selected column means."""
        return self.says[column.name] if column.name in self.says else str(column.comment)

    def sql(self, dialect: sa.Dialect) -> str:
        """The body of the view."""
        return str(self.query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))

    def digest(self, dialect: sa.Dialect) -> str:
        """SHA-256 of the body and of what is said."""
        said = [self.about, *(self.says_of(column) for column in self.query.selected_columns)]
        return hashlib.sha256("\n".join([self.sql(dialect), *said]).encode()).hexdigest()


def model_views(spec: ModelSpec, source: SourceSpec) -> tuple[Definition, ...]:
    """The views of one model, as `PER_MODEL` names them."""
    predictions, labels = model_tables(spec, source)
    row, later, known = predictions.alias("p"), predictions.alias("later"), labels.alias("l")
    scored, scored_later, measured = scorings.alias("s"), scorings.alias("scored_later"), cohorts.alias("c")

    def of(scoring: Any, table: Any) -> sa.ColumnElement[bool]:
        return sa.and_(
            scoring.c.model == spec.name,
            scoring.c.as_of == table.c.as_of,
            scoring.c.version == table.c.model_version,
        )

    newer = sa.exists(
        sa.select(sa.literal_column("1"))
        .select_from(later.join(scored_later, sa.and_(of(scored_later, later), scored_later.c.is_current)))
        .where(*(later.c[name] == row.c[name] for name in spec.entity.key), later.c.as_of > row.c.as_of)
        .correlate(row)
    )
    happened = sa.and_(*(known.c[name] == row.c[name] for name in (*spec.entity.key, "as_of")))
    cohort = sa.and_(
        measured.c.model == spec.name, measured.c.as_of == scored.c.as_of, measured.c.version == scored.c.version
    )
    shown = row.join(scored, sa.and_(of(scored, row), scored.c.is_current))
    # an alias forgets its columns' comments
    said = {column.name: str(column.comment) for table in (labels, predictions) for column in table.columns}
    restated = (scored.c.restated_at, scored.c.restated_reason)
    restating = {
        **said,
        "restated_at": "when these rows took the place of others of the same date, UTC; null for a first scoring",
        "restated_reason": "why they took their place; null for a first scoring",
    }
    return (
        Definition(
            f"{spec.name}_current",
            f"One row per entity of {spec.name}: its latest as-of date, as scored by the version in force",
            sa.select(*row.c, *restated).select_from(shown).where(~newer),
            restating,
        ),
        Definition(
            f"{spec.name}_history",
            f"One row per entity, as-of date and version of {spec.name}: every scoring, replaced ones too",
            sa.select(*row.c, scored.c.is_current, *restated).select_from(row.join(scored, of(scored, row))),
            {**restating, "is_current": "whether this version is the one that counts for the date"},
        ),
        Definition(
            f"{spec.name}_outcomes",
            f"One row per entity and as-of date of {spec.name} whose outcome is known",
            sa.select(*row.c, known.c.label, known.c.known_at).select_from(shown.join(known, happened)),
            said,
        ),
        Definition(
            f"{spec.name}_daily",
            f"One row per as-of date of {spec.name}: how much was scored, and how good it was once outcomes are known",
            sa.select(
                scored.c.as_of,
                scored.c.version.label("model_version"),
                scored.c.rows,
                scored.c.mean_probability,
                scored.c.decision_rate,
                measured.c.matured_rows,
                measured.c.coverage,
                measured.c.label_rate,
                measured.c.auc,
                measured.c.brier,
                scored.c.scored_at,
                *restated,
            )
            .select_from(scored.outerjoin(measured, cohort))
            .where(scored.c.model == spec.name, scored.c.is_current),
            {
                **restating,
                "as_of": "scored at 00:00 UTC of this date",
                "model_version": "version in the registry",
                "rows": "entities scored",
                "mean_probability": "mean probability of them",
                "decision_rate": "share of them decided yes",
                "matured_rows": "entities whose outcome is known; null before any is",
                "coverage": "matured_rows / rows",
                "label_rate": "share of positives among the matured rows",
                "auc": "area under the ROC curve of the matured rows; null with one class",
                "brier": "mean squared error of the probability on the matured rows",
                "scored_at": "first scored, UTC",
            },
        ),
    )


def common_views(dialect: sa.Dialect) -> tuple[Definition, ...]:
    """The views that all models share."""
    c = ledger.c
    if dialect.name == "sqlite":
        joined = "select group_concat(value, '; ') from (select value from json_each(ledger.reasons) order by key)"
        number = "case json_type(evidence, '$.version') when 'integer' then json_extract(evidence, '$.version') end"
    else:
        items = "json_array_elements_text(ledger.reasons) with ordinality as r(value, rank)"
        joined = f"select string_agg(r.value, '; ' order by r.rank) from {items}"
        number = "case json_typeof(evidence -> 'version') when 'number' then evidence ->> 'version' end"
    reasons: sa.ColumnElement[str] = sa.cast(sa.literal_column(f"({joined})"), sa.Text)
    version: sa.ColumnElement[int] = sa.cast(sa.literal_column(f"({number})"), sa.Integer)
    return (
        Definition(
            "model_decisions",
            "One row per decision about a model or a source: gate, promotion, verdict, retrain, rollback and the like",
            sa.select(
                c.id,
                c.as_of,
                c.subject,
                c.kind,
                c.outcome,
                version.label("model_version"),
                reasons.label("reasons"),
                c.actor,
                c.run_id,
                c.decided_at,
            ),
            {
                "id": "in the order they were recorded",
                "as_of": "the date it is about",
                "outcome": "what was decided",
                "model_version": "the version it is about, where it is about one",
                "reasons": "why, joined by semicolons",
                "actor": "who or what decided",
                "run_id": "the run that recorded it",
                "decided_at": "when it was recorded, UTC",
            },
        ),
    )


def names(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the views of one model."""
    return tuple(f"{spec.name}_{suffix}" for suffix in PER_MODEL)


# --- in the database -------------------------------------------------------------------------------------------------


def refresh(connection: sa.Connection, definitions: tuple[Definition, ...]) -> None:
    """Make the views that are absent or whose definition changed. Who could read them can read them again."""
    dialect = connection.dialect
    quote = dialect.identifier_preparer.quote
    existing = set(sa.inspect(connection).get_view_names())
    c = view_definitions.c
    wanted = {definition.name: definition.digest(dialect) for definition in definitions}
    found = sa.select(c.name, c.digest).where(c.name.in_(list(wanted)))
    made = {name: digest for name, digest in connection.execute(found).all() if name in existing}
    stale = [definition for definition in definitions if made.get(definition.name) != wanted[definition.name]]
    if not stale:
        return
    readers = _readers(connection) if dialect.name == "postgresql" else ()
    for view in stale:
        if view.name in existing:
            connection.exec_driver_sql(f"drop view {quote(view.name)}")
        connection.exec_driver_sql(f"create view {quote(view.name)} as {view.sql(dialect)}")
        if dialect.name == "postgresql":
            _comment(connection, view)
            for role in readers:
                connection.exec_driver_sql(f"grant select on {quote(view.name)} to {quote(role)}")
        connection.execute(sa.delete(view_definitions).where(c.name == view.name))
        connection.execute(sa.insert(view_definitions).values(name=view.name, digest=wanted[view.name]))


def _comment(connection: sa.Connection, view: Definition) -> None:
    quote = connection.dialect.identifier_preparer.quote

    def text(said: str) -> str:
        return "'" + said.replace("'", "''").replace("%", "%%") + "'"

    connection.exec_driver_sql(f"comment on view {quote(view.name)} is {text(view.about)}")
    for column in view.query.selected_columns:
        said = text(view.says_of(column))
        connection.exec_driver_sql(f"comment on column {quote(view.name)}.{quote(column.name)} is {said}")


def _readers(connection: sa.Connection) -> tuple[str, ...]:
    """Roles that may read: the read role where there is one, and whoever may read the decisions."""
    query = sa.text(
        "select rolname from pg_roles where rolname = :role union "
        "select grantee::regrole::text from pg_class, aclexplode(relacl) "
        "where oid = to_regclass('model_decisions') and privilege_type = 'SELECT' and grantee not in (0, relowner)"
    )
    return tuple(connection.scalars(query, {"role": READ_ROLE}))


def made(connection: sa.Connection) -> list[str]:
    """The analysts' views that this database has."""
    existing = set(sa.inspect(connection).get_view_names())
    return [name for name in connection.scalars(sa.select(view_definitions.c.name)) if name in existing]
