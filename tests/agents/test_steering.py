"""program.md steers: every strategy leaves alone what it makes taboo, also those that cannot read."""

from __future__ import annotations

import pytest

from agents.researcher import find_problem
from agents.steering import taboos
from jaxresearch.llm import resolve_model
from jaxresearch.proposal import Edit, Proposal
from jaxresearch.strategy import installed_strategies
from jaxresearch.synthetic import SyntheticStudy
from jaxresearch.testing import play

PROGRAM = """# Goals
Find a better schedule. Depth is taboo in my house.

- Taboo: `depth`, batch and models/optimizer.py
"""


def test_only_lines_that_say_so_are_read():
    assert taboos(PROGRAM) == {"depth", "batch", "models/optimizer.py"}
    assert taboos("**Taboos**: SwiGLU; tied.\n") == {"swiglu", "tied"}
    assert taboos("There is a taboo: none of it matters") == frozenset()


@pytest.mark.parametrize("name", ["greedy", "beam", "random_search", "tpe", "hybrid"])
def test_what_is_taboo_is_left_alone(name):
    played = play(installed_strategies()[name].factory, experiments=12, instructions=PROGRAM)
    proposals = [each for row in played.rounds for each in row]
    assert len(proposals) == 12
    assert not any({"depth", "batch"} & each.config.keys() for each in proposals)
    assert not any(edit.path == "models/optimizer.py" for each in proposals for edit in each.edits)


def test_a_model_that_does_not_listen_is_told():
    view = SyntheticStudy(resolve_model("builtin"), instructions=PROGRAM).view()
    problem = find_problem(Proposal(parent=0, hypothesis="deeper", config={"depth": 3}), view)
    assert problem == "depth is taboo: the person who runs this study asks to leave it as it is."
    edit = Edit(path="models/optimizer.py", search="", replace="x = 1\n")
    assert "taboo" in find_problem(Proposal(parent=0, hypothesis="new file", edits=(edit,)), view)
