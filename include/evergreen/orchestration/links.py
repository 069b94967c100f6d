"""Links from a task to the page about what it did. The pages themselves: plugins/evergreen_pages.py."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink

PREFIX = "/evergreen"


class PageLink(BaseOperatorLink):
    """A button on a task: `path` is a template over what the task returned, e.g. `/reports/{model}/{as_of}`."""

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path

    @property
    def name(self) -> str:
        return self._name

    @property
    def xcom_key(self) -> str:
        return f"link_{self._name.lower().replace(' ', '_')}"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        from airflow.configuration import conf

        returned = ti_key.xcom_pull(task_ids=operator.task_id, map_indexes=ti_key.map_index)
        if not returned:  # it failed: there is no page, and Airflow shows no button
            return ""
        return f"{conf.get('api', 'base_url').rstrip('/')}{PREFIX}{self._path.format_map(returned)}"


def link(result: Any, name: str, path: str) -> Any:
    """Put a link on the task behind `result`, and hand `result` back."""
    result.operator.operator_extra_links = (PageLink(name, path),)
    return result
