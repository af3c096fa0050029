"""A subject that gives no program, or none that fits, leaves no folder; one that was trained is never removed."""

from __future__ import annotations

import asyncio

import pytest
from fakes import SCRIPT, SUBJECT, Bench, FakeExecutor, FakeModel, Scripted

from jaxresearch.config import StudyConfig
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.experiment import TraceFailure, Verdict
from jaxresearch.proposal import Candidate
from jaxresearch.strategy import make_strategy
from jaxresearch.study.stillborn import remove_stillborn
from jaxresearch.study.study import Study


def _failed(bench: Bench, mode: str) -> Study:
    """A new study whose baseline gave no score."""
    subject = Candidate({"models/recipe.py": SUBJECT.files["models/recipe.py"].replace("fine", mode)})
    study = Study.create(bench.folder, bench.config, subject, corpus="c", tokenizer="t")
    with pytest.raises(JaxresearchError):
        asyncio.run(study.run(FakeExecutor(), Scripted(SCRIPT), FakeModel))
    return study


def test_a_study_whose_subject_gives_no_program_is_removed(bench: Bench):
    study = _failed(bench, "syntax")
    error = remove_stillborn(bench.folder, study)
    assert "SyntaxError: bad" in str(error)
    assert not bench.folder.exists()


def test_a_study_whose_subject_lacks_what_is_to_be_searched_is_removed(bench: Bench):
    config = StudyConfig.model_validate({"strategy": {"name": "tpe", "names": ["lr", "bacth"]}})
    executor = FakeExecutor()
    study = Study.create(bench.folder, config, SUBJECT, corpus="c", tokenizer="t")
    with pytest.raises(ConfigurationError, match=r"strategy\.names: 'bacth' is not searched"):
        asyncio.run(study.run(executor, make_strategy("tpe", config.strategy.options), FakeModel))
    assert not executor.requests, "nothing was trained"
    assert "'bacth'" in str(remove_stillborn(bench.folder, study))
    assert not bench.folder.exists()


def test_a_study_that_trained_stays(bench: Bench):
    study = _failed(bench, "nan")
    assert remove_stillborn(bench.folder, study) is None
    assert Study.open(bench.folder).history.hopeless


def test_a_setting_that_the_subject_refuses_is_named():
    failure = TraceFailure(verdict=Verdict.CRASH, reason="ValueError: dept: no such hyperparameter (models/recipe.py)")
    error = failure.of_subject({"dept": 3})
    assert isinstance(error, ConfigurationError)
    assert error.message == "subject.hyperparameters: dept: no such hyperparameter (models/recipe.py)."
    assert failure.of_subject({"width": 3}).exit_code == 1
