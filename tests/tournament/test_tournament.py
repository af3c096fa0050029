"""A tournament of fakes: equal budgets, shared runs, fresh seeds, and an honest sentence."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import SUBJECT, FakeExecutor, FakeModel, gain

from jaxresearch.config import TournamentConfig, validate_config
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.execution.base import RunProgress, RunRequest
from jaxresearch.experiment import Audit, FailedRun, RunOutcome, Verdict
from jaxresearch.proposal import Proposal
from jaxresearch.statistics.rules import make_rule
from jaxresearch.strategy import ProposalError, StrategyOptions, StudyView
from jaxresearch.study.events import RunDiscarded, RunFinished
from jaxresearch.study.reporter import NullReporter
from jaxresearch.study.session import drive
from jaxresearch.study.stopping import Interrupted, Stop
from jaxresearch.study.study import Study
from jaxresearch.tournament.plan import (
    PLAN_FILE,
    UNCAPPED_EXPERIMENTS,
    Arm,
    control_of,
    fresh_seeds,
    make_arms,
    study_config,
)
from jaxresearch.tournament.results import arm_repeats, results
from jaxresearch.tournament.shared import SharedRuns
from jaxresearch.tournament.tournament import Fixed, Tournament

FIXED = Fixed(SUBJECT, "sha256:corpus", "sha256:tokenizer")


class Searcher:
    """Tries gains drawn around `mean`, each on the baseline, from the view's generator."""

    Options = StrategyOptions

    def __init__(self, mean: float = 0.0) -> None:
        self.mean = mean

    async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
        return [gain(round(float(view.generator().normal(self.mean, 0.005)), 5))]


def tournament_config(**settings: object) -> TournamentConfig:
    part = {"repeats": 4, "controls": False, **settings.pop("tournament", {})}
    return validate_config({"experiments": 3, **settings, "tournament": part}, TournamentConfig)


ARMS = [Arm("a", "a", "builtin"), Arm("b", "b", "builtin")]


def play(
    folder: Path,
    config: TournamentConfig,
    strategies: dict[str, Searcher],
    executor: FakeExecutor | None = None,
    stop: Stop | None = None,
) -> dict:
    arms = [Arm(name, name, "builtin") for name in strategies]
    tournament = Tournament.create_or_open(folder, config, arms)
    work = tournament.run(
        FIXED, executor or FakeExecutor(), lambda arm: strategies[arm.name], lambda arm, study: FakeModel, stop=stop
    )
    asyncio.run(work)
    return json.loads(json.dumps(results(tournament), allow_nan=False))


def test_two_copies_of_one_strategy_show_no_difference(tmp_path: Path):
    executor = FakeExecutor()
    facts = play(tmp_path / "t", tournament_config(), {"a": Searcher(), "b": Searcher()}, executor)
    (contrast,) = facts["pairwise"]
    assert (contrast["difference"], contrast["p_value"]) == (0.0, 1.0)
    assert facts["conclusion"] == "No difference: the arms ended alike in every repeat."
    keys = [(request.identity, request.reference) for request in executor.requests]
    assert len(keys) == len(set(keys)), "an identical run is trained once"
    first, second = facts["strategies"]
    assert first["accelerator_seconds"] == second["accelerator_seconds"] > 0, "and charged to each"


def test_a_planted_better_strategy_is_found(tmp_path: Path):
    facts = play(tmp_path / "t", tournament_config(), {"a": Searcher(0.05), "b": Searcher(0.0)})
    (contrast,) = facts["pairwise"]
    assert contrast["p_value"] == pytest.approx(2 / 70)
    assert contrast["low"] <= contrast["difference"] <= contrast["high"] < -0.03
    assert facts["conclusion"].startswith("a beat b by 0.0")
    assert facts["conclusion"].endswith("bpb (p = 0.029).")
    assert facts["warning"] is None
    good, poor = facts["strategies"]
    assert good["best_val_bpb"]["mean"] < poor["best_val_bpb"]["mean"]
    assert good["anytime_auc"]["mean"] < poor["anytime_auc"]["mean"]
    assert good["test_bpb"]["mean"] == pytest.approx(good["best_val_bpb"]["mean"] + 0.02)
    assert facts["budget"] == "3 experiments"


def test_curves_of_a_repeat_begin_at_one_height_however_often_its_baseline_ran_again(tmp_path: Path):
    facts = play(tmp_path / "t", tournament_config(), {"a": Searcher(0.002), "b": Searcher(-0.05)})
    good, poor = ([curve[0]["val_bpb"] for curve in each["curves"]] for each in facts["strategies"])
    assert good == poor
    assert good[0] != good[1], "repeats have seeds of their own"


def test_too_few_repeats_are_warned_of(tmp_path: Path):
    config = tournament_config(tournament={"repeats": 3})
    facts = play(tmp_path / "t", config, {"a": Searcher(0.05), "b": Searcher(0.0)})
    assert facts["pairwise"][0]["p_value"] == pytest.approx(0.1)
    assert "smallest possible p-value is 0.1" in facts["warning"]
    assert facts["warning"].endswith("Use at least 4 repeats.")
    assert facts["conclusion"].startswith("No difference shown; about 4 repeats would be needed")


def test_the_object_is_as_documented(tmp_path: Path):
    facts = play(tmp_path / "t", tournament_config(tournament={"repeats": 2}), {"a": Searcher(0.05), "b": Searcher()})
    assert set(facts) >= {"strategies", "pairwise", "experiments_each", "budget"}
    wanted = {
        "name",
        "repeats",
        "best_val_bpb",
        "anytime_auc",
        "test_bpb",
        "llm_cost_usd",
        "accelerator_seconds",
    }
    assert all(set(each) >= wanted for each in facts["strategies"])
    assert all(set(each["best_val_bpb"]) == {"mean", "low", "high"} for each in facts["strategies"])
    for each in facts["strategies"]:
        assert set(each["best_so_far"]) == {"experiments", "accelerator_seconds", "flops", "llm_cost_usd"}
        for over, band in each["best_so_far"].items():
            assert all(point["low"] <= point["mean"] <= point["high"] for point in band)
            assert [point[over] for point in band] == sorted(point[over] for point in band)
        assert band[-1]["mean"] <= band[0]["mean"]
        assert each["accelerator_seconds_per_experiment"] == pytest.approx(each["accelerator_seconds"] / 6)
    assert all(set(each) == {"a", "b", "difference", "low", "high", "p_value"} for each in facts["pairwise"])


@pytest.mark.parametrize(("unit", "budget"), [("accelerator_seconds", 90.0), ("flops", 9e9)])
def test_one_budget_binds_and_replicates_count(tmp_path: Path, unit: str, budget: float):
    config = validate_config(
        {"tournament": {"repeats": 1, "controls": False, "arms": ["a"], unit: budget}}, TournamentConfig
    )
    tournament = Tournament.create_or_open(tmp_path / "t", config, ARMS)
    strategies = {"a": Searcher(0.05), "b": Searcher(-0.05)}
    asyncio.run(tournament.run(FIXED, FakeExecutor(), lambda arm: strategies[arm.name], lambda arm, study: FakeModel))
    winner, loser = arm_repeats(tournament)
    assert getattr(winner, unit) >= budget
    assert getattr(loser, unit) == budget, "a loser's experiments are one run each: the last ends at the line"
    assert winner.experiments < loser.experiments == 6, "replicates are charged"


def test_runs_ahead_that_were_not_needed_are_charged(tmp_path: Path):
    budget = {"repeats": 1, "controls": False, "arms": ["a"], "accelerator_seconds": 90.0}
    tournament = Tournament.create_or_open(
        tmp_path / "t", validate_config({"tournament": budget}, TournamentConfig), ARMS
    )
    strategies = {"a": Searcher(-0.05), "b": Searcher(-0.05)}
    discarded = RunDiscarded(number=1, identity="i", seed=0, accelerator_seconds=40.0)

    def model_of(arm: Arm, study: Study) -> type[FakeModel]:
        if arm.name == "b" and study.history.costs.discarded_seconds == 0:
            study._journal.record(discarded)
        return FakeModel

    asyncio.run(tournament.run(FIXED, FakeExecutor(), lambda arm: strategies[arm.name], model_of))
    honest, ahead = arm_repeats(tournament)
    assert ahead.accelerator_seconds == honest.accelerator_seconds == 90
    assert honest.experiments - ahead.experiments == 4, "10 seconds each"


def test_arms_take_turns_and_orders_rotate(tmp_path: Path):
    asked: list[str] = []

    class Named(Searcher):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
            asked.append(self.name)
            return await super().propose(view, slots)

    config = tournament_config(tournament={"repeats": 2})
    play(tmp_path / "t", config, {"a": Named("a"), "b": Named("b")})
    assert asked == ["a", "b"] * 3 + ["b", "a"] * 3


def test_final_seeds_are_fresh_and_repeats_differ_in_all_seeds(tmp_path: Path):
    executor, config = FakeExecutor(), tournament_config()
    play(tmp_path / "t", config, {"a": Searcher(0.05), "b": Searcher(0.0)}, executor)
    searched = {request.seed for request in executor.requests if request.split == "validation"}
    final = {request.seed for request in executor.requests if request.split == "test"}
    assert not searched & final
    assert final == {seed for repeat in range(4) for seed in fresh_seeds(config, repeat)}
    assert {study_config(config, ARMS[0], repeat).seed for repeat in range(4)} == {0, 1000, 2000, 3000}


def test_it_goes_on_where_it_was_stopped(tmp_path: Path):
    strategies: Callable[[], dict] = lambda: {"a": Searcher(0.05), "b": Searcher(0.0)}  # noqa: E731
    config = tournament_config(tournament={"repeats": 2})
    whole = play(tmp_path / "whole", config, strategies())
    for stop_after in (1, 4, 9, 14):
        stop, folder = Stop(), tmp_path / f"stopped-{stop_after}"

        class Stopping(FakeExecutor):
            def __init__(self, stop: Stop, after: int) -> None:
                super().__init__()
                self.stop, self.after = stop, after

            async def run(self, request: RunRequest, on_progress) -> RunOutcome:
                if len(self.requests) == self.after:
                    self.stop.request()
                return await super().run(request, on_progress)

        with pytest.raises(Interrupted):
            play(folder, config, strategies(), Stopping(stop, stop_after), stop)
        again = play(folder, config, strategies())
        assert again["pairwise"] == whole["pairwise"]
        assert [each["best_val_bpb"] for each in again["strategies"]] == [
            each["best_val_bpb"] for each in whole["strategies"]
        ]


def test_what_is_shared_comes_back_as_it_was_and_what_is_damaged_is_trained_again(tmp_path: Path):
    request = RunRequest(
        identity="i", program="peek:0.0:p", traced={"lr": 0.01}, seed=0, budget="1steps", wall_cap_seconds=9
    )
    audit = Audit(name="causality", passed=False, probes=1, max_deviation=math.inf)

    class Leaking(FakeExecutor):
        async def run(self, request: RunRequest, on_progress: Callable[[RunProgress], None]) -> RunOutcome:
            return (await super().run(request, on_progress)).model_copy(update={"audits": (audit,)})

    executor = Leaking()
    shared = SharedRuns(executor, tmp_path)

    def run() -> RunOutcome:
        return asyncio.run(shared.run(request, lambda _: None))

    assert run() == run()
    assert (shared.trained, shared.taken) == (1, 1)
    (path,) = tmp_path.iterdir()
    for damage in (path.read_bytes()[:-9], b"", b'{"status": "failed"}'):
        path.write_bytes(damage)
        assert run() == run()
    assert shared.trained == 4


def test_a_whole_tournament_is_not_run_again(tmp_path: Path):
    config, strategies = tournament_config(tournament={"repeats": 2}), {"a": Searcher(0.05), "b": Searcher(0.0)}
    first = play(tmp_path / "t", config, strategies)
    executor = FakeExecutor()
    assert play(tmp_path / "t", config, strategies, executor) == first
    assert executor.requests == []


def test_a_plan_from_before_a_setting_existed_goes_on(tmp_path: Path):
    config = tournament_config(budget="5e11flop")
    Tournament.create_or_open(tmp_path / "t", config, ARMS)
    plan = json.loads((tmp_path / "t" / PLAN_FILE).read_text())
    del plan["config"]["tournament"]["options"]
    plan["config"]["budget"] = "500000000000flop"
    (tmp_path / "t" / PLAN_FILE).write_text(json.dumps(plan))
    assert Tournament.create_or_open(tmp_path / "t", config, ARMS).arms == tuple(ARMS)


@pytest.mark.parametrize("bound", [{"flops": 9e9}, {"accelerator_seconds": 90.0}])
def test_a_tournament_that_is_read_again_has_no_cap_that_nobody_gave(tmp_path: Path, bound: dict):
    part = {"repeats": 2, "controls": False, **bound}
    for name, given in (("free", {}), ("capped", {"experiments": 5})):
        config = validate_config({"tournament": part, **given}, TournamentConfig)
        Tournament.create_or_open(tmp_path / name, config, ARMS)
        read = Tournament.open(tmp_path / name)
        assert study_config(read.config, ARMS[0], 1) == study_config(config, ARMS[0], 1)
        assert study_config(config, ARMS[0], 1).experiments == given.get("experiments", UNCAPPED_EXPERIMENTS)
        Tournament.create_or_open(tmp_path / name, read.config, ARMS)


def test_study_control_in_a_tournament_needs_a_number_of_experiments(tmp_path: Path):
    """5 % shared out over a number that nobody means to reach would keep nothing at all."""
    settings = {"acceptance": {"control": "study"}, "tournament": {"arms": ["a"], "flops": 1e12}}
    with pytest.raises(ConfigurationError, match="shares 5 % out over `experiments`: give that too"):
        validate_config(settings, TournamentConfig)
    config = validate_config({**settings, "experiments": 10}, TournamentConfig)
    assert make_rule(study_config(config, ARMS[0], 0)).false_keep_rate == pytest.approx(0.005)


def test_other_settings_are_refused(tmp_path: Path):
    Tournament.create_or_open(tmp_path / "t", tournament_config(), ARMS)
    with pytest.raises(JaxresearchError, match="other settings: experiments is 3, not 9"):
        Tournament.create_or_open(tmp_path / "t", tournament_config(experiments=9), ARMS)
    assert Tournament.open(tmp_path / "t").arms == tuple(ARMS)
    with pytest.raises(JaxresearchError, match="holds no tournament"):
        Tournament.open(tmp_path)
    (tmp_path / "t" / PLAN_FILE).write_text("{")
    with pytest.raises(JaxresearchError, match=f"{PLAN_FILE} cannot be read"):
        Tournament.open(tmp_path / "t")


def test_a_strategy_that_never_proposes_ends_its_arm_only(tmp_path: Path):
    class Mute(Searcher):
        async def propose(self, view: StudyView, slots: int) -> list[Proposal]:
            raise ProposalError("no idea")

    config = tournament_config(tournament={"repeats": 2})
    facts = play(tmp_path / "t", config, {"a": Mute(), "b": Searcher(0.05)})
    assert facts["experiments_each"] == {"a": [0, 0], "b": [3, 3]}
    assert facts["strategies"][0]["failed_proposal_rate"] == 1.0


def test_a_repeat_whose_final_runs_gave_no_score_is_left_out_and_named(tmp_path: Path):
    class Diverging(FakeExecutor):
        async def run(self, request: RunRequest, on_progress) -> RunOutcome:
            outcome = await super().run(request, on_progress)
            lost = request.split == "test" and request.seed < 1000 and float(request.program.split(":")[1]) > 0.03
            if not lost:
                return outcome
            return FailedRun(identity=request.identity, verdict=Verdict.CRASH, reason="diverged", seed=request.seed)

    config = tournament_config(tournament={"repeats": 5})
    facts = play(tmp_path / "t", config, {"a": Searcher(0.05), "b": Searcher(0.0)}, Diverging())
    assert (facts["repeats"], facts["planned_repeats"], facts["finished"]) == (4, 5, True)
    assert facts["warning"] == ("Left out, which may favour who failed: repeat 0, as a's final runs gave no score.")


def test_final_runs_that_fail_on_some_seeds_are_named(tmp_path: Path):
    """An incumbent that gives no score where it would be a bad one is not to look better unseen."""

    class Choosy(FakeExecutor):
        async def run(self, request: RunRequest, on_progress) -> RunOutcome:
            outcome = await super().run(request, on_progress)
            if request.split != "test" or request.seed % 2 or float(request.program.split(":")[1]) <= 0.03:
                return outcome
            return FailedRun(identity=request.identity, verdict=Verdict.CRASH, reason="diverged", seed=request.seed)

    config = tournament_config()
    facts = play(tmp_path / "t", config, {"a": Searcher(0.05), "b": Searcher(0.0)}, Choosy())
    assert facts["repeats"] == 4
    assert facts["warning"].startswith("Final runs without a score, which may favour who failed: a in repeat 0 (")
    assert "b in repeat" not in facts["warning"]


def test_its_studies_are_studies(tmp_path: Path):
    config = tournament_config(tournament={"repeats": 1})
    play(tmp_path / "t", config, {"a": Searcher(0.05), "b": Searcher(0.0)})
    tournament = Tournament.open(tmp_path / "t")
    study = tournament.study(tournament.arms[1], 0)
    assert study is not None
    assert study.verify() == study.history.seq
    assert study.layout.programs.resolve() == tournament.programs.resolve()
    finished = [stored.event for stored in study.events() if isinstance(stored.event, RunFinished)]
    assert all(event.shared_from is None for event in finished), "its ledger is charged for shared runs"
    with pytest.raises(JaxresearchError, match=r"holds no study, but folders of studies\. Name one: a-0, b-0"):
        Study.open(tmp_path / "t")


def test_an_arm_is_not_resumed_by_itself(tmp_path: Path):
    """It would use what its study says, and not what the tournament does."""
    play(tmp_path / "t", tournament_config(tournament={"repeats": 1}), {"a": Searcher(0.05), "b": Searcher(0.0)})
    study = Study.open(tmp_path / "t" / "a-0")
    with pytest.raises(JaxresearchError, match="Go on with: jaxresearch compare --tournament"):
        asyncio.run(drive(study, NullReporter(), on_preparation=lambda *_: None, on_stop=lambda _: None))


def test_arms_have_options_of_their_own():
    config = tournament_config(
        strategy={"name": "beam", "width": 2, "children": 2},
        tournament={
            "arms": ["beam", "beam", "random_search"],
            "options": {"beam": {"children": 3}, "beam-2": {"width": 4}, "random_search": {"names": ["depth"]}},
        },
    )
    arms, _ = make_arms(config, {"beam", "random_search"})
    assert [study_config(config, arm, 0).strategy.options for arm in arms] == [
        {"width": 2, "children": 3},
        {"width": 4, "children": 3},
        {"names": ["depth"]},
    ]
    astray = tournament_config(
        tournament={"arms": ["beam"], "options": {"tpe": {}, "bean": {"width": 4}}, "controls": False}
    )
    with pytest.raises(ConfigurationError, match="no arm and no strategy 'bean'") as refusal:
        make_arms(astray, {"beam", "tpe"})
    assert refusal.value.fix == "Arms: beam."


def test_arms_and_controls():
    config = tournament_config(tournament={"arms": ["greedy", "greedy:anthropic:x", "greedy"], "controls": True})
    arms, notes = make_arms(config, {"greedy", "random_search"})
    assert [arm.name for arm in arms] == ["greedy", "greedy:anthropic:x", "greedy-2", "random_search"]
    assert [arm.llm for arm in arms[:2]] == ["builtin", "anthropic:x"]
    assert notes == ["The control arm independent is left out: no such strategy is installed."]
    assert control_of(arms) == "random_search"
    assert control_of(arms[:2]) is None
    with pytest.raises(ConfigurationError, match="greedy:a/b and greedy:a:b would share the folder greedy_a_b"):
        make_arms(tournament_config(tournament={"arms": ["greedy:a/b", "greedy:a:b"]}), {"greedy"})
    with pytest.raises(ConfigurationError, match="a tournament needs arms"):
        make_arms(tournament_config(tournament={"controls": True}), {"independent", "random_search"})
    with pytest.raises(ConfigurationError, match="no strategy 'beam'"):
        make_arms(tournament_config(tournament={"arms": ["beam"]}), {"greedy"})
    with pytest.raises(ConfigurationError, match="one budget binds"):
        tournament_config(tournament={"flops": 1.0, "accelerator_seconds": 1.0})
