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
    sa.Index("ledger_by_subject", "subject", "id"),
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
    sa.Column("decision_rate", sa.Double, comment="share of rows decided yes"),
    sa.Column("digest", sa.String(64), comment="SHA-256 of the rows; null for a scoring of before it was kept"),
    sa.Column("restated_at", sa.DateTime(timezone=True), comment="when it took the place of other rows; null: a first"),
    sa.Column("restated_reason", sa.Text, comment="why it took their place"),
    sa.Index(
        "scorings_current",
        "model",
        "as_of",
        "version",
        sqlite_where=sa.text("is_current = 1"),
        postgresql_where=sa.text("is_current"),
    ),
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
    sa.Index("monitorings_by_verdict", "model", "verdict", "as_of"),
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

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("cause", sa.String(200), nullable=False, comment="what repeats are folded by: subject and kind"),
    sa.Column("subject", sa.String(64), nullable=False, comment="the model or source"),
    sa.Column(
        "kind",
        sa.String(32),
        nullable=False,
        comment="what is wrong: see alerts.cause.KINDS",
    ),
    sa.Column("severity", sa.String(8), nullable=False, comment="page | warn"),
    sa.Column("what", sa.Text, nullable=False, comment="one or two sentences, of the newest occurrence"),
    sa.Column("as_of", sa.Date, comment="as-of date of the newest occurrence"),
    sa.Column("since", sa.Date, comment="as-of date of the first occurrence of this episode"),
    sa.Column("link", sa.Text, nullable=False, comment="path of the page about it, under /evergreen"),
    sa.Column("runbook", sa.Text, nullable=False, comment="docs/runbooks/*.md"),
    sa.Column("seen", sa.Integer, nullable=False, comment="occurrences folded into this alert"),
    sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("resolved_at", sa.DateTime(timezone=True), comment="null while it is open"),
    sa.Column("resolution", sa.Text, comment="what ended it"),
    sa.Column("resolved_as_of", sa.Date, comment="as-of date of what ended it; null when that has none"),
    sa.Column("acknowledged_by", sa.String(64)),
    sa.Column("acknowledged_at", sa.DateTime(timezone=True)),
    sa.Column("note", sa.Text, comment="of the person who acknowledged it"),
    sa.Column("snoozed_until", sa.DateTime(timezone=True), comment="no reminder before"),
    sa.Column("run_id", sa.Text, nullable=False, comment="run of the newest occurrence"),
    sa.Column("told", sa.JSON, nullable=False, server_default="{}", comment="{channel: alerts.delivery.Told}"),
    sa.Column("told_at", sa.DateTime(timezone=True), comment="when a channel last took a message about it"),
    sa.Index(
        "one_open_alert_per_cause",
        "cause",
        unique=True,
        sqlite_where=sa.text("resolved_at is null"),
        postgresql_where=sa.text("resolved_at is null"),
    ),
    sa.Index("alerts_by_subject", "subject", "opened_at"),
    comment="The inbox: one row per cause and episode; repeats are folded into it",
)

alert_occurrences = sa.Table(
    "alert_occurrences",
    metadata,
    sa.Column("cause", sa.String(200), primary_key=True, comment="of the alert"),
    sa.Column("run_id", sa.Text, primary_key=True, comment="the run that saw it"),
    sa.Column("dated", sa.String(10), primary_key=True, comment="its as-of date, ISO; empty without one"),
    sa.Column("alert_id", sa.Integer, nullable=False, comment="the alert it was folded into"),
    sa.Index("alert_occurrences_by_run", "run_id"),
    comment="Every occurrence once: a retry of a run is not counted again",
)

view_definitions = sa.Table(
    "view_definitions",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, comment="SHA-256 of its SQL and comments"),
    comment="The analysts' views as they were last made: a view is made anew when its definition changed",
)
