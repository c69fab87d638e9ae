"""The dashboard: what Grafana imports, and every query about metrics that a run exports."""

import json
import re
from typing import Any

import pytest

from pipeline.report.metrics import METRICS
from tests.infra.project import INFRA

PREFIX = "ray_"  # Ray's, on every metric
BY_NAME = {PREFIX + metric.name: metric for metric in METRICS}
DASHBOARD: dict[str, Any] = json.loads((INFRA / "grafana" / "tokenmill.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
QUERIES = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(v["query"]["query"] for v in VARIABLES.values() if v["type"] == "query"),
]
WORDS = {"sum", "max", "min", "by", "rate", "or", "vector", "label_values"}


def named(query: str) -> set[str]:
    """Return the names in a query: metrics, labels, functions."""
    without = re.sub(r'"[^"]*"|\[[^\]]*\]|\b\d+\b', " ", query)
    return set(re.findall(r"[A-Za-z_]\w*", without))


@pytest.mark.parametrize("query", QUERIES)
def test_queries_name_what_is_exported(query: str) -> None:
    metrics = {BY_NAME[name] for name in named(query) if name in BY_NAME}
    labels = {key for metric in metrics for key in metric.tag_keys}
    assert metrics
    assert named(query) <= WORDS | set(BY_NAME) | labels
    for inside in re.findall(r"\{(.*?)\}", query):
        assert "job_name=" in inside


@pytest.mark.parametrize("query", QUERIES)
def test_only_counters_have_rates(query: str) -> None:
    for name in re.findall(r"rate\((\w+)", query):
        assert BY_NAME[name].kind == "counter"
    assert query.count("rate(") == query.count("[$__rate_interval]")


def test_every_metric_is_shown() -> None:
    shown = {name for query in QUERIES for name in named(query)}
    assert set(BY_NAME) <= shown


def test_parentheses_and_quotes_are_closed() -> None:
    for query in QUERIES:
        for left, right in ("()", "{}", "[]"):
            assert query.count(left) == query.count(right)
        assert query.count('"') % 2 == 0


def test_grafana_takes_it() -> None:
    assert DASHBOARD["uid"] == "tokenmill"
    assert DASHBOARD["schemaVersion"] >= 36  # data sources are objects from there on
    assert "id" not in DASHBOARD  # Grafana gives it
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["type"] in {"timeseries", "stat", "gauge"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_do_not_lie_on_each_other() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= taken


def test_a_user_chooses_data_source_and_job() -> None:
    assert list(VARIABLES) == ["datasource", "job", "stage"]
    assert VARIABLES["datasource"]["query"] == "prometheus"
    used = {name for query in QUERIES for name in re.findall(r'"\$(\w+)"', query)}
    assert used == {"job", "stage"}


def test_the_time_of_a_stage_is_stacked_to_the_whole() -> None:
    (panel,) = (panel for panel in PANELS if panel.get("repeat") == "stage")
    assert [target["legendFormat"] for target in panel["targets"]] == ["busy", "starved", "blocked"]
    assert panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "percent"
