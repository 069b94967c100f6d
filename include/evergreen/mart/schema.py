"""Tables of the mart and the ledger: what analysts, on-call and `status` read. Names are the field's own."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

ingest_batches = sa.Table(
    "ingest_batches",
    metadata,
    sa.Column("table_name", sa.String(64), primary_key=True),
    sa.Column("partition_date", sa.Date, primary_key=True),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, comment="published | stopped"),
    sa.Column("rows_in", sa.BigInteger, nullable=False),
    sa.Column("trusted", sa.BigInteger, nullable=False),
    sa.Column("quarantined", sa.BigInteger, nullable=False),
    sa.Column("duplicates", sa.BigInteger, nullable=False),
    sa.Column("deliveries", sa.JSON, nullable=False, comment="[{key, etag, sha256, rows}]"),
    sa.Column("reasons", sa.JSON, nullable=False, comment="why stopped; warnings of a published batch"),
    sa.Column("validation_uri", sa.Text),
    sa.Column("snapshot_id", sa.BigInteger),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
    comment="One row per table and partition: in = trusted + quarantined + duplicates",
)

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column(
        "kind",
        sa.String(32),
        nullable=False,
        comment="gate, promotion, approval, rollback, rebuild, holdout, verdict, retrain, quarantine_release",
    ),
    sa.Column("subject", sa.String(64), nullable=False, comment="the model or source decided about"),
    sa.Column("as_of", sa.Date, nullable=False),
    sa.Column("outcome", sa.String(32), nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
    sa.UniqueConstraint("kind", "subject", "as_of", "run_id", name="one_decision_per_run"),
    comment="Every decision, with its reasons and evidence. Append only.",
)

champions = sa.Table(
    "champions",
    metadata,
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("effective_from", sa.Date, primary_key=True, comment="first as-of date it may score"),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=False),
    comment="Which version was champion from when",
)

scorings = sa.Table(
    "scorings",
    metadata,
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("as_of", sa.Date, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("is_current", sa.Boolean, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("mean_probability", sa.Float, nullable=False),
    sa.Column("snapshot_id", sa.BigInteger),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
    comment="Every scoring of a partition; the current one is what analysts see",
)

monitorings = sa.Table(
    "monitorings",
    metadata,
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("as_of", sa.Date, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False, comment="scored the date; its reference was used"),
    sa.Column("verdict", sa.String(32), nullable=False, comment="the gravest finding (drift.verdict.GRAVITY)"),
    sa.Column("reasons", sa.JSON, nullable=False, comment="every finding, gravest first; then what is unknown"),
    sa.Column("columns", sa.JSON, nullable=False, comment="{column: {method, score, threshold, breached, note}}"),
    sa.Column("performance", sa.JSON, nullable=False, comment="drift.verdict.Performance and coverage"),
    sa.Column("report_uri", sa.Text),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
    comment="One verdict per model and as-of date, with its numbers",
)

cohorts = sa.Table(
    "cohorts",
    metadata,
    sa.Column("model", sa.String(64), primary_key=True, comment="the model"),
    sa.Column("as_of", sa.Date, primary_key=True, comment="the date that was scored"),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False, comment="the version that scored it"),
    sa.Column("scored_rows", sa.BigInteger, nullable=False, comment="rows published"),
    sa.Column("matured_rows", sa.BigInteger, nullable=False, comment="rows whose label was known when measured"),
    sa.Column("coverage", sa.Double, nullable=False, comment="matured_rows / scored_rows"),
    sa.Column("label_rate", sa.Double, nullable=False, comment="share of positives among the matured rows"),
    sa.Column("mean_probability", sa.Double, nullable=False, comment="mean prediction of the matured rows"),
    sa.Column("auc", sa.Double, comment="area under the ROC curve of the matured rows; null with one class"),
    sa.Column("brier", sa.Double, comment="mean squared error of the probability"),
    sa.Column("log_loss", sa.Double, comment="mean negative log-likelihood"),
    sa.Column("first_measured_on", sa.Date, nullable=False, comment="as-of date of the run that first measured it"),
    sa.Column("first_matured_rows", sa.BigInteger, nullable=False, comment="matured_rows of that run"),
    sa.Column("first_auc", sa.Double, comment="auc of that run"),
    sa.Column("first_brier", sa.Double, comment="brier of that run"),
    sa.Column("measured_on", sa.Date, nullable=False, comment="as-of date of the run that found these figures"),
    sa.Column("revisions", sa.Integer, nullable=False, comment="how often the figures changed since the first"),
    sa.Column("run_id", sa.Text, nullable=False, comment="the run that found these figures"),
    sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False, comment="when it recorded them, UTC"),
    comment="Performance of one scored date by one version, on the labels known so far",
)
