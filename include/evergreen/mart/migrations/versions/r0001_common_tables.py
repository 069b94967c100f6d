"""The common tables and the guards of the ledger. A mart of before there were revisions has some of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from include.evergreen.mart import guards

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "champions",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("effective_from", sa.Date(), nullable=False, comment="first as-of date it may score"),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("model", "effective_from"),
        comment="Which version was champion from when",
        if_not_exists=True,
    )
    op.create_table(
        "cohorts",
        sa.Column("model", sa.String(length=64), nullable=False, comment="the model"),
        sa.Column("as_of", sa.Date(), nullable=False, comment="the date that was scored"),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False, comment="the version that scored it"),
        sa.Column("scored_rows", sa.BigInteger(), nullable=False, comment="rows published"),
        sa.Column("matured_rows", sa.BigInteger(), nullable=False, comment="rows whose label was known when measured"),
        sa.Column("coverage", sa.Double(), nullable=False, comment="matured_rows / scored_rows"),
        sa.Column("label_rate", sa.Double(), nullable=False, comment="share of positives among the matured rows"),
        sa.Column("mean_probability", sa.Double(), nullable=False, comment="mean prediction of the matured rows"),
        sa.Column(
            "auc",
            sa.Double(),
            nullable=True,
            comment="area under the ROC curve of the matured rows; null with one class",
        ),
        sa.Column("brier", sa.Double(), nullable=True, comment="mean squared error of the probability"),
        sa.Column("log_loss", sa.Double(), nullable=True, comment="mean negative log-likelihood"),
        sa.Column(
            "first_measured_on", sa.Date(), nullable=False, comment="as-of date of the run that first measured it"
        ),
        sa.Column("first_matured_rows", sa.BigInteger(), nullable=False, comment="matured_rows of that run"),
        sa.Column("first_auc", sa.Double(), nullable=True, comment="auc of that run"),
        sa.Column("first_brier", sa.Double(), nullable=True, comment="brier of that run"),
        sa.Column("measured_on", sa.Date(), nullable=False, comment="as-of date of the run that found these figures"),
        sa.Column("revisions", sa.Integer(), nullable=False, comment="how often the figures changed since the first"),
        sa.Column("run_id", sa.Text(), nullable=False, comment="the run that found these figures"),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False, comment="when it recorded them, UTC"),
        sa.PrimaryKeyConstraint("model", "as_of", "version"),
        comment="Performance of one scored date by one version, on the labels known so far",
        if_not_exists=True,
    )
    op.create_table(
        "ingest_batches",
        sa.Column("table_name", sa.String(length=64), nullable=False),
        sa.Column("partition_date", sa.Date(), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False, comment="published | stopped"),
        sa.Column("rows_in", sa.BigInteger(), nullable=False),
        sa.Column("trusted", sa.BigInteger(), nullable=False),
        sa.Column("quarantined", sa.BigInteger(), nullable=False),
        sa.Column("duplicates", sa.BigInteger(), nullable=False),
        sa.Column("deliveries", sa.JSON(), nullable=False, comment="[{key, etag, sha256, rows}]"),
        sa.Column("reasons", sa.JSON(), nullable=False, comment="why stopped; warnings of a published batch"),
        sa.Column("validation_uri", sa.Text(), nullable=True),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("table_name", "partition_date"),
        comment="One row per table and partition: in = trusted + quarantined + duplicates",
        if_not_exists=True,
    )
    op.create_table(
        "ledger",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column(
            "kind",
            sa.String(length=32),
            nullable=False,
            comment="gate, promotion, approval, rollback, rebuild, holdout, verdict, retrain, quarantine_release",
        ),
        sa.Column("subject", sa.String(length=64), nullable=False, comment="the model or source decided about"),
        sa.Column("as_of", sa.Date(), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("kind", "subject", "as_of", "run_id", name="one_decision_per_run"),
        comment="Every decision, with its reasons and evidence. Append only.",
        if_not_exists=True,
    )
    op.create_table(
        "monitorings",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("as_of", sa.Date(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False, comment="scored the date; its reference was used"),
        sa.Column(
            "verdict", sa.String(length=32), nullable=False, comment="the gravest finding (drift.verdict.GRAVITY)"
        ),
        sa.Column("reasons", sa.JSON(), nullable=False, comment="every finding, gravest first; then what is unknown"),
        sa.Column("columns", sa.JSON(), nullable=False, comment="{column: {method, score, threshold, breached, note}}"),
        sa.Column("performance", sa.JSON(), nullable=False, comment="drift.verdict.Performance and coverage"),
        sa.Column("report_uri", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("model", "as_of"),
        comment="One verdict per model and as-of date, with its numbers",
        if_not_exists=True,
    )
    op.create_table(
        "scorings",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("as_of", sa.Date(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("is_current", sa.Boolean(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("mean_probability", sa.Float(), nullable=False),
        sa.Column("snapshot_id", sa.BigInteger(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("model", "as_of", "version"),
        comment="Every scoring of a partition; the current one is what analysts see",
        if_not_exists=True,
    )
    guards.create(op.get_bind())


def downgrade() -> None:
    guards.drop(op.get_bind())
    op.drop_table("scorings")
    op.drop_table("monitorings")
    op.drop_table("ledger")
    op.drop_table("ingest_batches")
    op.drop_table("cohorts")
    op.drop_table("champions")
