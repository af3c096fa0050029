"""The page: a study's record as one HTML file that needs nothing else, or the shell of the live dashboard.

Text from outside goes two ways only: through jinja2's autoescape, or as JSON into a data block that the page's script
turns into text nodes. A content security policy with the script's hash forbids every other script and all network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from jaxresearch.report.record import ExperimentRecord, RunRecord, StudyRecord, clean_value
from jaxresearch.text import one_line

SCRIPTS = (
    "dom.js",
    "plot.js",
    "progress.js",
    "tree.js",
    "loss.js",
    "experiments.js",
    "sections.js",
    "tournament.js",
    "page.js",
)
DIFF_CHARACTERS = 800_000
"""Of all diffs of a page together. Above it, the longest are cut first, and say so."""
CURVE_POINTS = 60_000
MOST_POINTS, FEWEST_POINTS = 96, 12
INCIDENTS = 50
"""The last, which a page lists."""
TEXT_LIMIT, TRACEBACK_LIMIT = 4000, 4000
_CUT = "\n… cut here; `jaxresearch show` has all of it\n"


def render_report(record: StudyRecord) -> str:
    """`record` as one self-contained HTML page."""
    data = {"kind": "study", "live": False, **page_data(record)}
    return _render(data, title=record.study, record=record)


def render_tournament(facts: Mapping[str, Any], *, live: bool = False) -> str:
    """The object of `compare --json` as one self-contained HTML page, or as a page of the dashboard."""
    data = {"kind": "tournament", "live": live, "home": "/", **tournament_data(facts)}
    return _render(data, title=data["tournament"]["tournament"], record=None, tournament=data["tournament"])


def tournament_data(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the page's script reads: the facts without single repeats' curves, their texts clean, their numbers short."""
    arms = [{name: value for name, value in arm.items() if name != "curves"} for arm in facts["strategies"]]
    cleaned = clean_value({**facts, "strategies": arms})
    return {"tournament": _rounded(cleaned), "version": _version()}


def _version() -> str:
    try:
        return version("jaxresearch")
    except PackageNotFoundError:
        return ""


def render_live(data: Mapping[str, Any], *, title: str) -> str:
    """The dashboard's page: the same components, fed from the server that sent it."""
    return _render({**data, "live": True}, title=title, record=None)


def page_data(record: StudyRecord) -> dict[str, Any]:
    """What the page's script reads: the study, a row for each experiment, and each one's details."""
    experiments = record.experiments
    diff_limit = _fair_limit([len(each.diff) for each in experiments], DIFF_CHARACTERS)
    curves = sum(len(each.runs) for each in experiments)
    points = max(FEWEST_POINTS, min(MOST_POINTS, CURVE_POINTS // max(1, curves)))
    return {
        "study": study_data(record),
        "rows": [row_data(each) for each in experiments],
        "details": {each.number: detail_data(each, diff_limit=diff_limit, points=points) for each in experiments},
    }


def study_data(record: StudyRecord) -> dict[str, Any]:
    """The study without its experiments."""
    facts = record.model_dump(mode="json", by_alias=True, exclude={"experiments", "incidents"})
    last = [each.model_dump(mode="json") for each in record.incidents[-INCIDENTS:]]
    short = [{**each, "detail": _cut(each["detail"], 200)} for each in last]
    return {**facts, "incidents": short, "incident_kinds": dict(Counter(each.kind for each in record.incidents))}


def row_data(experiment: ExperimentRecord) -> dict[str, Any]:
    """What lists and charts need of one experiment."""
    wanted = (
        "number parent verdict val_bpb sem difference difference_low difference_high p_value same_as "
        "running_seed llm_cost_usd accelerator_seconds simpler repairs"
    ).split()
    row = experiment.model_dump(mode="json", include=set(wanted))
    texts = {"title": experiment.title[:300], "tag": experiment.tag[:100]}
    return _rounded({**row, **texts, "runs": len(experiment.runs), "quarantined": bool(experiment.quarantine)})


def detail_data(experiment: ExperimentRecord, *, diff_limit: int = 60_000, points: int = MOST_POINTS) -> dict[str, Any]:
    """What one opened experiment shows."""
    wanted = (
        "expected_effect config reason compared_with commit program failure traceback trace_seconds proposed_at "
        "decided_at llm_calls llm_tokens command quarantine llm predicted_bpb confidence"
    ).split()
    return {
        **_rounded(experiment.model_dump(mode="json", include=set(wanted))),
        "hypothesis": _cut(experiment.hypothesis, TEXT_LIMIT),
        "expected_effect": _cut(experiment.expected_effect, TEXT_LIMIT),
        "reason": _cut(experiment.reason, TEXT_LIMIT),
        "failure": _cut(experiment.failure, TEXT_LIMIT),
        "traceback": experiment.traceback[-TRACEBACK_LIMIT:],
        "diff": _cut(experiment.diff, diff_limit),
        "runs": [_run_data(run, points) for run in experiment.runs],
    }


def search_text(experiment: ExperimentRecord) -> str:
    """Where the dashboard's search looks, beside the row: its details stay on the server until they are opened."""
    config = " ".join(f"{key} = {value}" for key, value in experiment.config.items())
    return " ".join((experiment.hypothesis, experiment.reason, config))[:1500]


def _run_data(run: RunRecord, points: int) -> dict[str, Any]:
    kept = (
        "status seed shared_from val_bpb loss steps tokens train_seconds compile_seconds eval_seconds audit_seconds "
        "tokens_per_second mfu peak_memory_bytes parameters device devices processes attention sandbox worker flags "
        "checkpoint resumed checkpoint_note verdict step"
    ).split()
    facts = run.model_dump(mode="json", include=set(kept))
    facts = {key: value for key, value in facts.items() if value not in (None, "", [])}
    facts |= {key: one_line(facts[key], 120) for key in ("attention", "worker", "checkpoint_note") if key in facts}
    facts |= {"checkpoint": run.checkpoint[:19]} if run.checkpoint else {}
    audits = [audit.model_dump(mode="json") for audit in run.audits]
    more = {"reason": _cut(run.reason, TEXT_LIMIT), "traceback": run.traceback[-TRACEBACK_LIMIT:], "audits": audits}
    facts = _rounded({**facts, **{key: value for key, value in more.items() if value}})
    return {**facts, "curve": _thinned(run.curve, points)}


def _thinned(curve: Iterable[tuple[float | None, float | None]], points: int) -> list[float]:
    """At most `points` of the curve, flat: progress in thousandths, then loss, and so on."""
    whole = [(x, y) for x, y in curve if x is not None and y is not None]
    if len(whole) > points:
        last = len(whole) - 1
        whole = [whole[round(at * last / (points - 1))] for at in range(points)]
    return [number for x, y in whole for number in (round(x * 1000), _short(round(y, 3)))]


def _rounded(value: Any) -> Any:
    """`value` with all its floats short."""
    match value:
        case float():
            return _short(value)
        case dict():
            return {key: _rounded(each) for key, each in value.items()}
        case list():
            return [_rounded(each) for each in value]
        case _:
            return value


def _short(number: float) -> float:
    """Six significant digits: a page needs no more, and is a third smaller."""
    return number if abs(number) > 1e6 else float(f"{number:.6g}")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + _CUT


def _fair_limit(lengths: list[int], budget: int) -> int:
    """The largest cap on each length with which all together stay within `budget`."""
    left, remaining = budget, sorted(lengths)
    for position, length in enumerate(remaining):
        share = left // (len(remaining) - position)
        if length > share:
            return share
        left -= length
    return max(remaining, default=0)


def _render(
    data: Mapping[str, Any], *, title: str, record: StudyRecord | None, tournament: Mapping[str, Any] | None = None
) -> str:
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    connect = "'self'" if data["live"] else "'none'"
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            record=record,
            tournament=tournament,
            style=Markup(_asset("page.css")),
            script=Markup(script),
            data=Markup(json_block(data)),
            policy=f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
            f"connect-src {connect}; base-uri 'none'; form-action 'none'",
        )
    )


def json_block(data: Mapping[str, Any]) -> str:
    """`data` as JSON that can stand in any HTML: no character in it means anything to an HTML parser."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _script() -> str:
    """All scripts as one, in a scope of their own."""
    return "(() => {\n'use strict';\n" + "\n".join(map(_asset, SCRIPTS)) + "\n})();"


@cache
def _asset(name: str) -> str:
    return files("jaxresearch.report").joinpath("assets", name).read_text("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("jaxresearch.report", "assets"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["when"] = lambda at: datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    environment.filters["bpb"] = lambda value: "-" if value is None else f"{value:.4f}"
    environment.filters["effect"] = lambda value: "" if value is None else f"{value:+.4f}"
    return environment
