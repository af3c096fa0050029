"""The tables of a tournament, in Markdown, from what `jaxresearch compare --json` printed.

    jaxresearch compare --config configs/tournament.yaml --strategy greedy --strategy tpe --strategy beam \\
        --strategy reflective --tournament tournaments/example --json > docs/tournament/result.json
    python benchmarks/tournament_table.py docs/tournament/result.json > docs/tournament/README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jaxresearch.budget import Budget

COMMAND = (
    "jaxresearch compare --config configs/tournament.yaml --strategy greedy --strategy tpe --strategy beam "
    "--strategy reflective --tournament tournaments/example"
)


def figure(found: dict[str, Any] | None, digits: int = 4, *, sign: bool = False) -> str:
    """`mean (low to high)`, or a dash."""
    if found is None or found["mean"] is None:
        return "-"
    form = f"{'+' if sign else ''}.{digits}f"
    mean = format(found["mean"], form)
    if found["low"] is None or found["high"] is None:
        return mean
    return f"{mean} ({format(found['low'], form)} to {format(found['high'], form)})"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(facts: dict[str, Any], command: str, title: str, remark: str) -> str:
    """The whole page. Every figure in it comes from `facts`. remark: what else a reader should know of the machine."""
    arms = facts["strategies"]
    scores = [
        [
            arm["name"],
            figure(arm["best_val_bpb"]),
            figure(arm["val_change"], sign=True),
            figure(arm["test_bpb"]),
            figure(arm["anytime_auc"]),
        ]
        for arm in arms
    ]
    habits = []
    for arm in arms:
        rates, calibrated = arm["rates"], arm["calibration"]
        brier = "-" if calibrated is None else f"{calibrated['brier']:.3f} ({calibrated['brier_of_share']:.3f})"
        habits.append(
            [
                arm["name"],
                figure(arm["experiments"], 1),
                *(percent(rates.get(name)) for name in ("keep", "crash", "duplicate")),
                percent(arm["repair_rate"]),
                brier,
                f"{arm['accelerator_seconds']:.0f}",
                f"{arm['llm_cost_usd']:.2f}",
            ]
        )
    contrasts = [
        [
            f"{each['a']} against {each['b']}",
            figure({"mean": each["difference"], **each}, sign=True),
            figure({"mean": test["difference"], **test}, sign=True),
            f"{each['p_value']:.3g}",
        ]
        for each, test in zip(facts["pairwise"], facts["pairwise_test"], strict=True)
    ]
    parts = [
        f"# {title}",
        f"`{command}`",
        remark,
        f"{facts['repeats']} of {facts['planned_repeats']} repeats; each arm in each: {facts['budget']}, replicates "
        f"included; one run: {Budget.parse(facts['run_budget'])}. Intervals: 95 %, over repeats.",
        table(["arm", "val_bpb, fresh seeds", "against the baseline", "test_bpb", "best so far, mean"], scores),
        table(
            [
                "arm",
                "experiments",
                "keep",
                "crash",
                "duplicate",
                "repair",
                "Brier (of the share)",
                "accelerator s",
                "$",
            ],
            habits,
        ),
        "Planned contrasts, below zero says that the first is better; p is corrected (Holm) and of validation:",
        table(["contrast", "val_bpb", "test_bpb", "p"], contrasts),
        facts["warning"] or "",
        f"**{facts['conclusion']}**",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--command", default=COMMAND)
    parser.add_argument("--title", default="A tournament")
    parser.add_argument("--remark", default="", help="what a reader should know of the machine")
    options = parser.parse_args()
    facts = json.loads(options.result.read_text("utf-8"))
    print(document(facts, options.command, options.title, options.remark), end="")


if __name__ == "__main__":
    main()
