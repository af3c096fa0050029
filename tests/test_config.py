from pathlib import Path

import pytest

from jaxresearch.config import StudyConfig, load_config, validate_config
from jaxresearch.errors import ConfigurationError


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "study.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(file, *overrides: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_config(file, overrides)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_no_file_and_an_empty_file_are_all_defaults(write):
    assert load_config(None) == StudyConfig()
    assert load_config(write("")) == StudyConfig()


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(write):
    file = write("experiments: 3\ncontext: 64\nsubject: {hyperparameters: {depth: 3}}\n")
    config = load_config(file, ["experiments=9", "subject.hyperparameters.width=64", "strategy.name=beam"])
    assert (config.experiments, config.context, config.strategy.name) == (9, 64, "beam")
    assert config.subject.hyperparameters == {"depth": 3, "width": 64}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("experimens=3", "experimens"),
        ("limits.trace_secnds=3", "limits.trace_secnds"),
        ("evaluation.tokens.more=3", "evaluation.tokens"),
        ("corpus.vocab_size=70000", "corpus.vocab_size"),
        ("corpus.vocab_size=many", "corpus.vocab_size"),
        ("context=7", "context"),
        ("evaluation.batch=1", "evaluation.batch"),
        ("acceptance.runs=1", "acceptance.runs"),
        ("acceptance.alpha=0.5", "acceptance.alpha"),
        ("limits.trace_seconds=0", "limits.trace_seconds"),
        ("limits.trace_seconds=-1", "limits.trace_seconds"),
        ("limits.evaluation_seconds=.inf", "limits.evaluation_seconds"),
        ("acceptance.simplicity=.nan", "acceptance.simplicity"),
        ("execution.ray_resources={A: -1}", "execution.ray_resources"),
        ("sandbox.require=docker", "sandbox.require"),
        ("execution.executor=ray9", "execution.executor"),
        ("execution={devices: 4, fsdp: 3}", "execution: fsdp 3 does not divide 4 devices"),
        ("seed=-1", "seed"),
        ("seed=null", "seed"),
        ("max_cost=-0.01", "max_cost"),
        ("subject.hyperparameters.depth=[1,2]", "subject.hyperparameters.depth"),
        ("budget=5parsecs", "budget"),
    ],
)
def test_a_wrong_key_or_value_is_named(override, key):
    assert refused(None, override).startswith(f"{key}")


@pytest.mark.parametrize("text", ["/data/my #1 corpus", "a: b", "123", "null", "[x", "${x}", "é", ""])
def test_an_option_is_taken_as_it_is(write, text):
    file = write("corpus: {vocab_size: 512}\n")
    config = load_config(file, ["seed=3"], options={"corpus.source": text, "execution.threads": 2})
    assert (config.corpus.source, config.corpus.vocab_size) == (text, 512)
    assert (config.seed, config.execution.threads) == (3, 2)


def test_an_option_below_a_setting_that_is_no_mapping_leaves_it_to_be_named(write):
    for text in ("corpus: 3\n", "corpus: null\n"):
        with pytest.raises(ConfigurationError, match=r"^corpus: "):
            load_config(write(text), options={"corpus.source": "x"})


def test_the_line_of_broken_yaml_is_said(write):
    assert refused(write("seed: 1\nexperiments: 2\nexperiments: 3\n")).endswith(
        "found duplicate key experiments, line 3."
    )
    assert refused(write("a: ${missing}\n")).startswith("--config: ")


def test_a_wrong_key_in_the_file_is_named(write):
    assert refused(write("model: {depht: 3}")).startswith("model: no such setting.")
    assert refused(write("limits:\n  parameters: [1]\n")).startswith("limits.parameters")


def test_options_of_a_strategy_stand_beside_its_name():
    config = load_config(None, ["strategy.name=tpe", "strategy.startup=5"])
    assert config.strategy.options == {"startup": 5}


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "\tb: 1",
        "a: 1\na: 2",
        "- 1\n- 2",
        "just text",
        "3",
        b"\xff\xfe\x00",
        "a: ${missing}",
        "a: !!python/object/apply:os.getcwd []",
    ],
)
def test_yaml_that_is_broken_or_no_mapping_is_one_clear_line(write, text):
    refused(write(text))


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    assert "no-such.yaml" in refused(tmp_path / "no-such.yaml")
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize("override", ["experiments", "=3", " =3", "", "a.b"])
def test_an_override_without_key_and_value_is_quoted_back(override):
    assert f"--set {override}: expected key=value" in refused(None, override)


@pytest.mark.parametrize("override", ["experiments=[1", "seed=${oops}", "a[=3"])
def test_an_override_that_does_not_parse_is_one_clear_line(override):
    refused(None, override)


def test_a_budget_is_brought_into_one_spelling():
    assert load_config(None, ["budget=5m"]).budget == load_config(None, ["budget=300s"]).budget == "300s"


def test_a_budget_without_a_unit_is_told_the_units():
    assert "like 300s" in refused(None, "budget=5")


def test_a_list_is_no_settings(write):
    assert "holds no settings" in refused(write("- 1\n- 2"))


@pytest.mark.parametrize("settings", [None, [], "text", 3, {"seed": {"deep": 1}}, {3: 4}])
def test_settings_that_are_no_mapping_of_known_keys_are_refused(settings):
    with pytest.raises(ConfigurationError):
        validate_config(settings)


def test_a_config_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        StudyConfig().seed = 3
