"""Restatement and decision rate of scorings, the inbox of alerts, the views' definitions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alert_occurrences",
        sa.Column("cause", sa.String(length=200), nullable=False, comment="of the alert"),
        sa.Column("run_id", sa.Text(), nullable=False, comment="the run that saw it"),
        sa.Column("dated", sa.String(length=10), nullable=False, comment="its as-of date, ISO; empty without one"),
        sa.Column("alert_id", sa.Integer(), nullable=False, comment="the alert it was folded into"),
        sa.PrimaryKeyConstraint("cause", "run_id", "dated"),
        comment="Every occurrence once: a retry of a run is not counted again",
    )
    op.create_index("alert_occurrences_by_run", "alert_occurrences", ["run_id"], unique=False)
    op.create_table(
        "alerts",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column(
            "cause", sa.String(length=200), nullable=False, comment="what repeats are folded by: subject and kind"
        ),
        sa.Column("subject", sa.String(length=64), nullable=False, comment="the model or source"),
        sa.Column("kind", sa.String(length=32), nullable=False, comment="what is wrong: see alerts.cause.KINDS"),
        sa.Column("severity", sa.String(length=8), nullable=False, comment="page | warn"),
        sa.Column("what", sa.Text(), nullable=False, comment="one or two sentences, of the newest occurrence"),
        sa.Column("as_of", sa.Date(), nullable=True, comment="as-of date of the newest occurrence"),
        sa.Column("since", sa.Date(), nullable=True, comment="as-of date of the first occurrence of this episode"),
        sa.Column("link", sa.Text(), nullable=False, comment="path of the page about it, under /evergreen"),
        sa.Column("runbook", sa.Text(), nullable=False, comment="docs/runbooks/*.md"),
        sa.Column("seen", sa.Integer(), nullable=False, comment="occurrences folded into this alert"),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True, comment="null while it is open"),
        sa.Column("resolution", sa.Text(), nullable=True, comment="what ended it"),
        sa.Column(
            "resolved_as_of", sa.Date(), nullable=True, comment="as-of date of what ended it; null when that has none"
        ),
        sa.Column("acknowledged_by", sa.String(length=64), nullable=True),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("note", sa.Text(), nullable=True, comment="of the person who acknowledged it"),
        sa.Column("snoozed_until", sa.DateTime(timezone=True), nullable=True, comment="no reminder before"),
        sa.Column("run_id", sa.Text(), nullable=False, comment="run of the newest occurrence"),
        sa.Column("told", sa.JSON(), server_default="{}", nullable=False, comment="{channel: alerts.delivery.Told}"),
        sa.Column(
            "told_at", sa.DateTime(timezone=True), nullable=True, comment="when a channel last took a message about it"
        ),
        sa.PrimaryKeyConstraint("id"),
        comment="The inbox: one row per cause and episode; repeats are folded into it",
    )
    op.create_index("alerts_by_subject", "alerts", ["subject", "opened_at"], unique=False)
    op.create_index(
        "one_open_alert_per_cause",
        "alerts",
        ["cause"],
        unique=True,
        sqlite_where=sa.text("resolved_at is null"),
        postgresql_where=sa.text("resolved_at is null"),
    )
    op.create_table(
        "view_definitions",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False, comment="SHA-256 of its SQL and comments"),
        sa.PrimaryKeyConstraint("name"),
        comment="The analysts' views as they were last made: a view is made anew when its definition changed",
    )
    op.create_index("ledger_by_subject", "ledger", ["subject", "id"], unique=False)
    op.create_index("monitorings_by_verdict", "monitorings", ["model", "verdict", "as_of"], unique=False)
    op.add_column(
        "scorings", sa.Column("decision_rate", sa.Double(), nullable=True, comment="share of rows decided yes")
    )
    op.add_column(
        "scorings",
        sa.Column(
            "digest",
            sa.String(length=64),
            nullable=True,
            comment="SHA-256 of the rows; null for a scoring of before it was kept",
        ),
    )
    op.add_column(
        "scorings",
        sa.Column(
            "restated_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when it took the place of other rows; null: a first",
        ),
    )
    op.add_column("scorings", sa.Column("restated_reason", sa.Text(), nullable=True, comment="why it took their place"))
    op.create_index(
        "scorings_current",
        "scorings",
        ["model", "as_of", "version"],
        unique=False,
        sqlite_where=sa.text("is_current = 1"),
        postgresql_where=sa.text("is_current"),
    )
    _fill_decision_rates(op.get_bind())


def downgrade() -> None:
    _drop_views(op.get_bind())
    op.drop_index(
        "scorings_current",
        table_name="scorings",
        sqlite_where=sa.text("is_current = 1"),
        postgresql_where=sa.text("is_current"),
    )
    op.drop_column("scorings", "restated_reason")
    op.drop_column("scorings", "restated_at")
    op.drop_column("scorings", "digest")
    op.drop_column("scorings", "decision_rate")
    op.drop_index("monitorings_by_verdict", table_name="monitorings")
    op.drop_index("ledger_by_subject", table_name="ledger")
    op.drop_table("view_definitions")
    op.drop_index(
        "one_open_alert_per_cause",
        table_name="alerts",
        sqlite_where=sa.text("resolved_at is null"),
        postgresql_where=sa.text("resolved_at is null"),
    )
    op.drop_index("alerts_by_subject", table_name="alerts")
    op.drop_table("alerts")
    op.drop_index("alert_occurrences_by_run", table_name="alert_occurrences")
    op.drop_table("alert_occurrences")


def _fill_decision_rates(connection: sa.Connection) -> None:
    """Scorings of before, from their rows."""
    quote = connection.dialect.identifier_preparer.quote
    present = set(sa.inspect(connection).get_table_names())
    for model in list(connection.scalars(sa.text("select distinct model from scorings"))):
        if f"{model}_predictions" in present:
            rate = sa.text(
                "update scorings set decision_rate = "
                "(select avg(cast(case when decision then 1 else 0 end as double precision)) "
                f"from {quote(f'{model}_predictions')} p where p.as_of = scorings.as_of "
                "and p.model_version = scorings.version) where model = :model"
            )
            connection.execute(rate, {"model": model})


def _drop_views(connection: sa.Connection) -> None:
    """They read what is about to go; the code of before makes its own again."""
    quote = connection.dialect.identifier_preparer.quote
    present = set(sa.inspect(connection).get_view_names())
    for name in list(connection.scalars(sa.text("select name from view_definitions"))):
        if name in present:
            connection.exec_driver_sql(f"drop view {quote(name)}")
