"""Writes the dashboards in dashboards/ from those in tables/: `python deploy/grafana/generate.py`.

There a panel is its title, what it says, its unit and its expressions; where it lies, its number
and what Grafana wants besides are worked out here. Tests fail where a file is not what this writes.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from panels import Dashboard, Panel
from tables import DASHBOARDS

HERE = Path(__file__).parent
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
SIZES = {
    "stat": (4, 4),
    "timeseries": (8, 8),
    "state-timeline": (12, 8),
    "heatmap": (8, 8),
    "table": (12, 8),
}
"""Kind → width and height; Grafana's grid is 24 wide."""

RUNBOOKS = "https://nexus.example/docs/runbooks"
"""Where the links lead until the variable `runbooks` says otherwise."""


def dashboard(wanted: Dashboard) -> dict[str, Any]:
    """A dashboard as Grafana takes it."""
    return {
        "uid": wanted.uid,
        "title": wanted.title,
        "description": wanted.description,
        "tags": ["nexus"],
        "editable": True,
        "graphTooltip": 1,  # the crosshair on all panels at once
        "schemaVersion": 41,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {
                "title": "Nexus",
                "type": "dashboards",
                "tags": ["nexus"],
                "icon": "external link",
                "tooltip": "",
                "asDropdown": False,
                "targetBlank": False,
                "includeVars": True,
                "keepTime": True,
            },
            _link("Runbooks", wanted.runbook) | {"tags": []},
        ],
        "templating": {"list": _variables(wanted)},
        "annotations": {"list": [_restarts()]},
        "panels": _panels(wanted),
    }


def _link(title: str, page: str) -> dict[str, Any]:
    return {
        "title": title,
        "type": "link",
        "url": f"${{runbooks}}/{page}",
        "icon": "doc",
        "tooltip": "",
        "asDropdown": False,
        "targetBlank": True,
        "includeVars": False,
        "keepTime": False,
        "tags": [],
    }


def _variables(wanted: Dashboard) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = [
        {
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "hide": 0,
        },
        {"name": "runbooks", "type": "constant", "query": RUNBOOKS, "hide": 2},
    ]
    for name, family in (("instance", "build"), ("model", "model"), ("backend", "backend")):
        if name in wanted.variables:
            within = "" if name == "instance" else '{instance=~"$instance"}'
            query = f"label_values(nexus_{family}_info{within}, {name})"
            variables.append(
                {
                    "name": name,
                    "label": name.capitalize(),
                    "type": "query",
                    "datasource": DATASOURCE,
                    "hide": 0,
                    "query": {"query": query, "refId": name},
                    "refresh": 2,
                    "sort": 1,
                    "multi": True,
                    # Everything: also `none`, `unknown` and `other`, which no list of names has.
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                }
            )
    return variables


def _restarts() -> dict[str, Any]:
    return {
        "name": "Configuration read",
        "enable": True,
        "iconColor": "blue",
        "datasource": DATASOURCE,
        "expr": "changes(nexus_config_last_reload_success_timestamp_seconds"
        '{instance=~"$instance"}[1m]) > 0',
    }


def _panels(wanted: Dashboard) -> list[dict[str, Any]]:
    """Rows from top to bottom, each with its panels from left to right in as many lines as they
    need."""
    numbers, panels, y = count(1), [], 0
    for title, row in wanted.rows.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        head = {"type": "row", "title": title, "collapsed": False, "panels": []}
        panels.append({"id": next(numbers), **head, "gridPos": place})
        x, y, height = 0, y + 1, 0
        for panel in row:
            width, tall = panel.width or SIZES[panel.kind][0], SIZES[panel.kind][1]
            if x + width > WIDTH:
                x, y, height = 0, y + height, 0
            panels.append(_panel(panel, next(numbers), {"x": x, "y": y, "w": width, "h": tall}))
            x, height = x + width, max(height, tall)
        y += height
    return panels


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    made = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": [_target(panel, at, *query) for at, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }
    if panel.runbook:
        made["links"] = [_link("Runbook", panel.runbook)]
    if panel.kind == "table":
        hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
        made["transformations"] = [
            {
                "id": "organize",
                "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": {}},
            }
        ]
    return made


def _target(panel: Panel, at: int, expression: str, legend: str) -> dict[str, Any]:
    now = panel.kind in ("stat", "table")
    return {
        "refId": chr(ord("A") + at),
        "datasource": DATASOURCE,
        "expr": expression,
        "legendFormat": legend,
        "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
        "range": not now,
        "instant": now,
        "editorMode": "code",
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit}
    if panel.limits:
        field["thresholds"] = {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.limits],
        }
        field["color"] = {"mode": "thresholds"}
    if panel.names:
        field["mappings"] = [
            {
                "type": "value",
                "options": {
                    value: {"text": text, "color": colour, "index": at}
                    for at, (value, (text, colour)) in enumerate(panel.names.items())
                },
            }
        ]
    if panel.kind == "timeseries":
        field["min"] = 0 if not panel.signed else None
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        field["custom"] = {
            "fillOpacity": 40 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": stacking,
        }
    return {key: value for key, value in field.items() if value is not None}


def _options(panel: Panel) -> dict[str, Any]:
    legend = {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []}
    tooltip = {"mode": "multi", "sort": "desc"}
    match panel.kind:
        case "stat":
            return {
                "colorMode": "background" if panel.limits or panel.names else "none",
                "graphMode": "none",
                "justifyMode": "auto",
                "orientation": "auto",
                "textMode": "auto",
                "wideLayout": True,
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            }
        case "state-timeline":
            return {
                "showValue": "never",
                "rowHeight": 0.9,
                "mergeValues": True,
                "legend": legend,
                "tooltip": {"mode": "single", "sort": "none"},
            }
        case "heatmap":
            return {
                "calculate": False,
                "yAxis": {"unit": panel.unit},
                "cellGap": 1,
                "showValue": "never",
                "color": {
                    "mode": "scheme",
                    "scheme": "Oranges",
                    "fill": "dark-orange",
                    "exponent": 0.5,
                    "steps": 64,
                    "reverse": False,
                },
                "legend": {"show": True},
                "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
            }
        case "table":
            return {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
        case _:
            return {"legend": legend, "tooltip": tooltip}


def files() -> dict[Path, str]:
    """Path → content of each dashboard."""
    return {
        HERE / "dashboards" / f"{wanted.uid}.json": json.dumps(dashboard(wanted), indent=2) + "\n"
        for wanted in DASHBOARDS
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
