"""What the health page reads: the mart and the specs, never the lake (but for the rows a caller hands in) or MLflow.

Every function opens one short transaction or a few; SQLAlchemy is all it imports.
"""

from __future__ import annotations

from include.evergreen.health.data import failures, partitions, tables
from include.evergreen.health.fleet import fleet
from include.evergreen.health.model import model_page, report_page, reports
from include.evergreen.health.story import story
from include.evergreen.health.versions import versions
from include.evergreen.health.words import summary

__all__ = [
    "failures",
    "fleet",
    "model_page",
    "partitions",
    "report_page",
    "reports",
    "story",
    "summary",
    "tables",
    "versions",
]
