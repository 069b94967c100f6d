"""Says which specs are wrong, as an import error of this file. The DAGs of sound specs go on in theirs.

It makes no DAG; Airflow parses it as it does the others.
"""

from __future__ import annotations

from include.evergreen.errors import SpecError
from include.evergreen.specs import survey

if _wrong := survey().wrong:
    raise SpecError("\n".join(map(str, _wrong)))
