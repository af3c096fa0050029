import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from jaxresearch.experiment import Experiment
from jaxresearch.proposal import Candidate, Edit, EditError, Proposal, apply, checked_path

TEXT = "import jax\n\n\ndef norm(x):\n    return x / 2\n\n\ndef twice(x):\n    return 2 * x\n"
PARENT = Candidate(files={"models/gpt.py": TEXT, "models/__init__.py": ""}, config={"depth": 2, "width": 64})


def propose(*edits: tuple[str, str, str], **config) -> Proposal:
    parts = tuple(Edit(path=path, search=search, replace=replace) for path, search, replace in edits)
    return Proposal(parent=0, hypothesis="h", edits=parts, config=config)


def refusal(*edits: tuple[str, str, str]) -> str:
    with pytest.raises(EditError) as caught:
        apply(propose(*edits), PARENT)
    return str(caught.value)


def test_an_edit_replaces_the_one_place_and_leaves_the_parent_alone():
    child = apply(propose(("models/gpt.py", "x / 2", "x / 3")), PARENT)
    assert child.files["models/gpt.py"] == TEXT.replace("x / 2", "x / 3")
    assert PARENT.files["models/gpt.py"] == TEXT


@given(st.text(min_size=1, max_size=5), st.text(max_size=20))
def test_what_an_edit_replaces_is_literal(search, replace):
    text = f"head\n{search}tail"
    assume(text.count(search) == 1)
    parent = Candidate(files={"models/a.py": text})
    assert apply(propose(("models/a.py", search, replace)), parent).files["models/a.py"] == f"head\n{replace}tail"


def test_edits_apply_in_order_each_on_the_result_of_the_last():
    child = apply(propose(("models/gpt.py", "x / 2", "x / 30"), ("models/gpt.py", "x / 30", "x / 4")), PARENT)
    assert "x / 4" in child.files["models/gpt.py"]


def test_config_is_laid_over_the_parents():
    assert apply(propose(depth=3, softcap=30.0), PARENT).config == {"depth": 3, "width": 64, "softcap": 30.0}


def test_an_ambiguous_search_names_the_lines():
    message = refusal(("models/gpt.py", "return", "yield"))
    assert "occurs 2 times in models/gpt.py, at lines 5, 9" in message


def test_a_miss_shows_the_nearest_lines_with_their_numbers():
    message = refusal(("models/gpt.py", "def nrom(x):\n    return x/2", ""))
    assert "does not occur in models/gpt.py" in message
    assert "4: def norm(x):\n5:     return x / 2" in message


@pytest.mark.timeout(120)
def test_a_miss_in_a_monstrous_file_is_answered_soon():
    parent = Candidate(files={"models/a.py": "ab" * 200_000 + "\n" + "line\n" * 50_000})
    with pytest.raises(EditError):
        apply(propose(("models/a.py", "ba" * 100_000 + "!", "")), parent)
    with pytest.raises(EditError):
        apply(propose(("models/a.py", "lime\n" * 1000, "")), parent)


def test_an_empty_search_creates_a_new_file_and_never_overwrites_one():
    child = apply(propose(("models/parts/rope.py", "", "x = 1\n")), PARENT)
    assert child.files["models/parts/rope.py"] == "x = 1\n"
    assert "exists already" in refusal(("models/gpt.py", "", "x = 1\n"))
    assert "does not exist" in refusal(("models/none.py", "x", "y"))


NOT_THE_SUBJECT = (
    *("/etc/passwd", "/models/gpt.py", "../models/gpt.py", "models/../jaxresearch/config.py", "models/../../x.py"),
    *("models/..", "models", "models/", "", ".", "models\\gpt.py", "models/a\\..\\..\\b.py", "models/.hidden.py"),
    *("models/.git/hooks/pre-commit.py", ".git/hooks/x.py", "models/gpt.txt", "models/gpt.pth", "models/gpt.pyc"),
    *("models/data.npy", "jaxresearch/scoring/scorer.py", "tests/conftest.py", "configs/cpu.yaml", "agents/greedy.py"),
    *("modelsx/gpt.py", "xmodels/gpt.py", "Models/gpt.py", "models/g\x00.py", "models/g\n.py", "models/\u202eyp.py"),
)


@pytest.mark.parametrize("path", NOT_THE_SUBJECT)
def test_only_python_files_of_the_subject_may_change(path):
    assert "is not the subject" in refusal((path, "", "x = 1\n"))


def test_a_path_is_brought_into_one_spelling():
    assert checked_path("./models//parts/../gpt.py") == "models/gpt.py"
    child = apply(propose(("./models/gpt.py", "x / 2", "x")), PARENT)
    assert set(child.files) == set(PARENT.files)


@given(st.text(max_size=30))
def test_an_accepted_path_stays_below_models(path):
    try:
        normal = checked_path("models/" + path)
    except EditError:
        return
    assert normal.startswith("models/")
    assert normal.endswith(".py")
    assert not {"..", ".", ""} & set(normal.split("/"))


def test_a_file_cannot_become_a_folder():
    assert "a file and a folder" in refusal(("models/gpt.py/evil.py", "", "x = 1\n"))


def test_a_candidate_has_a_largest_size():
    assert "larger than 1,000,000 characters" in refusal(("models/big.py", "", "#" * 1_000_001))


def test_lone_surrogates_and_unknown_fields_are_no_proposal():
    with pytest.raises(ValidationError):
        Edit(path="models/a.py", search="", replace="\ud800")
    with pytest.raises(ValidationError):
        Proposal(parent=0, hypothesis="h", verdict="keep")


@pytest.mark.parametrize(("hypothesis", "title"), [("", "no hypothesis"), ("\n \n", "no hypothesis"), ("\na\nb", "a")])
def test_an_experiment_has_a_title_whatever_its_hypothesis(hypothesis, title):
    proposal = Proposal(parent=0, hypothesis=hypothesis)
    assert Experiment(number=1, parent=0, proposal=proposal).title == title
