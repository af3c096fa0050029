"""StudyConfig: every setting of a study, its unit and its default. YAML, then `--set key=value`, then validation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from yaml import MarkedYAMLError, YAMLError

from jaxresearch.budget import Budget
from jaxresearch.errors import ConfigurationError
from jaxresearch.levels import Level, stricter
from jaxresearch.proposal import Scalar

MOST_SLOTS = 64
"""Of one study, and workers of one machine."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CorpusConfig(_Part):
    """The text: `python-stdlib`, a corpus of the hub, or a path to .txt, .jsonl or .parquet files or a folder of them."""

    source: str = Field(
        default="python-stdlib",
        description="`python-stdlib`; `tinystories` or `climbmix` (fetched from the hub); or .txt, .jsonl or .parquet "
        "files or a folder of them",
    )
    vocab_size: int = Field(default=2048, ge=300, le=65535, description="of the byte-level BPE, specials included")
    shards: int = Field(default=1, ge=1, description="training shards of a corpus of the hub")
    repo: str | None = Field(default=None, description="OWNER/NAME of a copy of a corpus of the hub")
    revision: str | None = Field(default=None, description="of a corpus of the hub: a commit or branch; null is main")


class SubjectConfig(_Part):
    """What is studied: an installed subject's name or a folder, and the values that the baseline sets."""

    source: str = Field(default="gpt", description="an installed subject, or a folder with recipe.py")
    hyperparameters: dict[str, Scalar] = Field(
        default_factory=dict, description="values that the baseline sets, over the subject's own defaults"
    )


class EvaluationConfig(_Part):
    """How a run is scored; the same for every candidate."""

    tokens: int = Field(default=131_072, ge=1024, description="validation tokens scored, rounded to whole batches")
    batch: int = Field(default=16, ge=2, description="rows of one forward pass")


class AcceptanceConfig(_Part):
    """When a contender is better: see jaxresearch.statistics.rules."""

    rule: Literal["paired", "fixed", "greedy"] = Field(
        default="paired",
        description="paired: sequential test; fixed: `runs` pairs each; greedy: any decrease, untested",
    )
    alpha: float = Field(default=0.01, gt=0, lt=0.5, description="false keeps for each contender of no effect, at most")
    runs: int = Field(default=3, ge=2, le=64, description="seeds of the baseline, and pairs under `fixed`")
    max_runs: int = Field(default=6, ge=2, le=64, description="pairs of one contender under `paired`, at most")
    own_spread: float = Field(
        default=0.05,
        ge=0,
        lt=0.5,
        description="level of the tests whether a contender's own pairs spread more, or (four or more) less, than the "
        "study's others: it is then tested on its own alone. 0: never",
    )
    control: Literal["contender", "study"] = Field(
        default="contender",
        description="study: 5 % for the whole study, shared out evenly, instead of `alpha` for each",
    )
    early_stopping: bool = Field(
        default=True, description="cut a contender's first run when it is hopelessly behind; never under `fixed`"
    )
    simplicity: float = Field(
        default=0.5,
        ge=0,
        le=4,
        description="a simpler candidate may lose this much, in deviations between the baseline's seeds; 0: never",
    )
    interleave: int = Field(
        default=4,
        ge=0,
        le=64,
        description="under a budget in seconds: runs apart that a contender's first pair may be, before the incumbent "
        "runs again; further pairs are adjacent. 0: it never runs again",
    )


class ConstraintsConfig(_Part):
    """What a candidate must keep to, however good its score is. None of them binds unless it is set."""

    parameters: int | None = Field(default=None, gt=0, description="at most; a candidate above it is discarded")
    program_bytes: int | None = Field(default=None, gt=0, description="of a program's StableHLO, at most")
    lines_added: int | None = Field(default=None, ge=0, description="lines of code that the baseline lacks, at most")
    peak_memory_bytes: int | None = Field(default=None, gt=0, description="that XLA plans for a run, at most")
    evaluation_seconds: float | None = Field(default=None, gt=0, description="of scoring a run, median, at most")

    @property
    def binding(self) -> dict[str, float]:
        """Those that are set."""
        return {name: limit for name, limit in self.model_dump().items() if limit is not None}


class OversightConfig(_Part):
    """What is watched while nobody watches."""

    approve: Literal["none", "code"] = Field(
        default="none", description="code: a person is asked before changed sources are traced; needs a terminal"
    )
    quarantine: bool = Field(default=True, description="run an implausible jump again before it may be kept")
    quarantine_runs: int = Field(default=2, ge=1, le=16, description="fresh seeds of a quarantine")
    floor_bpb: float = Field(
        default=0.3, ge=0, description="no model of ordinary text scores below this; at most a quarter of the baseline"
    )
    max_incidents: int | None = Field(default=None, ge=1, description="incidents after which the study pauses itself")


class StrategyConfig(BaseModel):
    """A strategy's name; its own options stand beside it and are validated by the strategy."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = Field(
        default="greedy", description="see `jaxresearch strategies`; a strategy's options stand beside it"
    )

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class LLMConfig(_Part):
    """Who answers: `builtin`, or PROVIDER:MODEL such as anthropic:claude-sonnet-4-5."""

    model: str = Field(default="builtin", description="or PROVIDER:MODEL")
    timeout_seconds: float = Field(default=120, gt=0, description="of one whole request")
    max_requests: int = Field(default=16, ge=2, description="model requests of one proposal, repairs included")
    max_output_tokens: int = Field(default=8192, ge=256, description="of one reply")


class SandboxConfig(_Part):
    """The weakest tier in which candidates may be traced and programs may run, strongest first."""

    require: Level | None = Field(default=None, description="refuse to trace or to run on a weaker tier")


class HooksConfig(_Part):
    """Who is told while nobody watches: see jaxresearch.study.hooks."""

    url: str | None = Field(default=None, description="http(s) address to POST to, or $NAME of a variable holding it")
    command: str | None = Field(default=None, description="command that gets the message on standard input; no shell")
    on: tuple[Literal["keep", "stop", "error", "quarantine", "incidents"], ...] = Field(
        default=("keep", "stop", "error", "quarantine", "incidents"), description="what to tell of"
    )
    timeout_seconds: float = Field(default=5, gt=0, le=60, description="of one attempt; three are made")

    @field_validator("url")
    @classmethod
    def _url_is_of_the_web(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://", "$")):
            raise ValueError("expected http://..., https://... or $NAME of an environment variable")
        return url

    @field_validator("command")
    @classmethod
    def _command_can_be_split(cls, command: str | None) -> str | None:
        if command is not None and not shlex.split(command):  # raises ValueError at a quote that is not closed
            raise ValueError("it is empty")
        return command


class LimitsConfig(_Part):
    """Caps on what a candidate may ask of the laboratory."""

    trace_seconds: float = Field(default=120, gt=0, description="of tracing one candidate, and of verifying it")
    compile_seconds: float = Field(default=300, gt=0, description="of compiling one program")
    evaluation_seconds: float = Field(default=600, gt=0, description="of scoring and auditing one run")
    train_seconds_factor: float = Field(
        default=3,
        gt=1,
        description="wall cap of a run, in baseline runs; never below 300 s, or 60 s under a budget in seconds",
    )
    train_seconds: float = Field(default=7200, gt=0, description="wall cap of a run before the baseline is known")
    program_bytes: int = Field(default=2_000_000, gt=0, description="of a program's StableHLO")
    constant_bytes: int = Field(default=65_536, ge=0, description="of all constants in a program")
    attribute_bytes: int = Field(
        default=65_536, ge=0, description="of all numbers in a program's attributes; 12 layers have 16,000"
    )
    parameters: int = Field(default=1_000_000_000, gt=0, description="that the logits may read")
    memory_bytes: int = Field(
        default=16_000_000_000, gt=0, description="address space of the tracing process; at most the machine's memory"
    )


class ExecutionConfig(_Part):
    """Where runs happen."""

    executor: Literal["local", "ray"] = Field(
        default="local", description="where runs happen: on this machine, or on the nodes of a Ray cluster"
    )
    ray_address: str = Field(default="auto", description="HOST:PORT of the Ray cluster; auto: the one of this machine")
    ray_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="further Ray resources that a run takes, such as `{accelerator_type:H100: 0.001}`",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of a run; all cores when null")
    workers: int | None = Field(
        default=None,
        ge=1,
        le=MOST_SLOTS,
        description="runs at once, each with its own devices or cores; null: one for each slot that has devices, 1 on a "
        "CPU",
    )
    devices: int = Field(
        default=1, ge=1, description="devices that one run is spread over; all there are over several hosts"
    )
    fsdp: int | None = Field(
        default=None, ge=1, description="devices that hold one state together; null chooses by its size"
    )
    attention: Literal["auto", "xla"] = Field(
        default="auto", description="auto: cuDNN's kernel on a GPU where it supports the shapes and agrees with xla"
    )
    keep_awake_programs: int = Field(default=32, ge=1, description="programs after which a worker is replaced")
    checkpoint_seconds: float | None = Field(
        default=60, gt=0, description="of training between two checkpoints of a study's run; null for none on the way"
    )
    grace_seconds: float = Field(
        default=25, ge=2, le=600, description="after SIGTERM, in which the session ends; spot machines give 30"
    )
    checkpoint_gb: float = Field(
        default=10, ge=0, description="disk for a study's checkpoints; those of kept experiments always stay"
    )

    @model_validator(mode="after")
    def _fsdp_divides(self) -> Self:
        if self.fsdp is not None and self.devices > 1 and self.devices % self.fsdp:  # 1: over several hosts, not told
            raise ValueError(f"fsdp {self.fsdp} does not divide {self.devices} devices")
        return self

    @property
    def saving_seconds(self) -> float:
        """Of the seconds of grace, to write a checkpoint of a run that is given up."""
        return 0.3 * self.grace_seconds


class StudyConfig(_Part):
    """One search: what is searched, with what, under which budget, and when it stops."""

    corpus: CorpusConfig = CorpusConfig()
    subject: SubjectConfig = SubjectConfig()
    context: int = Field(default=256, ge=8, description="tokens that predict, in training rows and in evaluation")
    budget: str = Field(
        default="600ktok", validate_default=True, description="of one run: 300s, 2000steps, 50Mtok, 1e15flop"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    acceptance: AcceptanceConfig = AcceptanceConfig()
    strategy: StrategyConfig = StrategyConfig()
    llm: LLMConfig = LLMConfig()
    sandbox: SandboxConfig = SandboxConfig()
    limits: LimitsConfig = LimitsConfig()
    constraints: ConstraintsConfig = ConstraintsConfig()
    oversight: OversightConfig = OversightConfig()
    hooks: HooksConfig = HooksConfig()
    execution: ExecutionConfig = ExecutionConfig()
    tracking: tuple[str, ...] = Field(default=(), description="trackers: tensorboard, or installed ones")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the study: run seeds and the strategy's choices")
    experiments: int = Field(default=8, ge=0, description="proposals to try, the baseline not counted")
    slots: int = Field(default=1, ge=1, le=MOST_SLOTS, description="proposals asked for at a time")
    max_seconds: float | None = Field(
        default=None, gt=0, description="wall seconds of the study, after which nothing is begun"
    )
    stop_after_no_gain: int | None = Field(
        default=None, ge=0, description="experiments in a row that improve nothing, after which it ends; 0: never"
    )
    max_cost: float | None = Field(
        default=None, ge=0, description="US dollars of the study's LLM calls, those in flight counted at their most"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="tokens of the study's LLM calls, both ways, likewise"
    )

    @property
    def evaluation_text(self) -> str:
        """The part of a run's identity that says how it is scored."""
        return f"context={self.context} tokens={self.evaluation.tokens} batch={self.evaluation.batch}"

    def requiring(self, level: str | None) -> Self:
        """These settings, asking for `level` too: an option may tighten what a study requires, never loosen it."""
        required = stricter(self.sandbox.require, level)
        return self.model_copy(update={"sandbox": self.sandbox.model_copy(update={"require": required})})

    def reaching(self, ray_address: str | None) -> Self:
        """These settings with the Ray cluster at another address, where one is given."""
        if ray_address is None:
            return self
        return self.model_copy(update={"execution": self.execution.model_copy(update={"ray_address": ray_address})})

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_readable(cls, value: object) -> str:
        try:
            return str(Budget.parse(str(value)))  # YAML reads 5 as a number; Budget then says which unit is missing
        except ConfigurationError as error:
            raise ValueError(str(error)) from None


class TournamentPart(_Part):
    """What is compared, and the one budget that binds each arm in each repeat."""

    arms: tuple[str, ...] = Field(default=(), description="STRATEGY, or STRATEGY:LLM such as greedy:anthropic:...")
    repeats: int = Field(default=8, ge=1, le=900)
    accelerator_seconds: float | None = Field(
        default=None, gt=0, description="of one arm in one repeat, replicates too"
    )
    flops: float | None = Field(default=None, gt=0, description="of one arm in one repeat's trainings")
    final_seeds: int = Field(default=3, ge=1, le=400, description="fresh seeds on which final incumbents run again")
    controls: bool = Field(default=True, description="add the arms `independent` and `random_search`")
    options: dict[str, dict[str, Any]] = Field(
        default={}, description="of a strategy, or of one arm such as beam-2, which come on top"
    )

    @model_validator(mode="after")
    def _one_budget_binds(self) -> TournamentPart:
        if self.accelerator_seconds is not None and self.flops is not None:
            raise ValueError("give accelerator_seconds or flops, not both: one budget binds")
        return self


class TournamentConfig(StudyConfig):
    """A tournament: the study that every arm runs, and how the arms are compared.

    Without accelerator_seconds and flops, `experiments` is the budget that binds; else it is a further cap.
    """

    tournament: TournamentPart = TournamentPart()

    @property
    def is_capped(self) -> bool:
        """Whether `experiments` is a number that somebody gave: the default is none, where another budget binds."""
        bound = self.tournament.accelerator_seconds is not None or self.tournament.flops is not None
        return not bound or "experiments" in self.model_fields_set

    @model_validator(mode="after")
    def _study_control_needs_a_number(self) -> Self:
        if self.acceptance.control == "study" and not self.is_capped:
            raise ValueError("acceptance.control is study, which shares 5 % out over `experiments`: give that too")
        return self

    @model_validator(mode="after")
    def _nobody_is_told(self) -> Self:
        if self.hooks.url is not None or self.hooks.command is not None:
            raise ValueError("hooks are a study's: a tournament has none")
        return self

    @property
    def study(self) -> StudyConfig:
        return StudyConfig.model_validate(self.model_dump(exclude={"tournament"}))


Config = TypeVar("Config", bound=StudyConfig)


def load_config(
    file: Path | None,
    overrides: Sequence[str] = (),
    kind: type[Config] = StudyConfig,
    *,
    options: Mapping[str, object] | None = None,
    of_subject: bool = True,
) -> Config:
    """The settings of `file` (all defaults when None) with `overrides` ("key.sub=value") on top, and `options` on these.

    Overrides are YAML. Options are values as they are, by dotted key: a path may hold what means something in YAML.
    of_subject: whether what `file` says of hyperparameters counts: values, and those that a tournament's arms search.
    Raises `ConfigurationError` that names the offending key.
    """
    from omegaconf import DictConfig, OmegaConf  # here: most commands read no such file
    from omegaconf.errors import OmegaConfBaseException

    try:
        base = OmegaConf.load(file) if file is not None else OmegaConf.create({})
    except FileNotFoundError:
        raise ConfigurationError(f"--config: no file {file}.", fix="Give a path to a YAML file.") from None
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--config: {file} is not readable YAML: {_first_line(error)}.", fix="`key: value` lines are expected."
        ) from None
    if not isinstance(base, DictConfig):
        raise ConfigurationError(f"--config: {file} holds no settings.", fix="`key: value` lines are expected.")
    for part, key in (("subject", "hyperparameters"), ("tournament", "options")):
        if not of_subject and isinstance(base.get(part), DictConfig):
            base[part].pop(key, None)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigurationError(f"--set {override}: expected key=value.", fix="For example --set experiments=20.")
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides))), resolve=True)
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        where = "--set" if overrides or file is None else f"--config: {file}"
        raise ConfigurationError(f"{where}: {_first_line(error)}.") from None
    for key, value in (options or {}).items():
        _put(merged, key.split("."), value)
    return validate_config(merged, kind)


def _put(settings: Any, path: Sequence[str], value: object) -> None:
    """`value` at `path`. Where a part of the path is no mapping it stays what it is, for validation to name."""
    for name in path[:-1]:
        if not isinstance(settings, dict):
            return
        settings = settings.setdefault(name, {})
    if isinstance(settings, dict):
        settings[path[-1]] = value


def validate_config(settings: object, kind: type[Config] = StudyConfig) -> Config:
    """`settings` as a configuration of that kind.

    Raises `ConfigurationError` such as `limits.trace_secnds: no such setting.`.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "configuration"
        if first["type"] == "extra_forbidden":
            raise ConfigurationError(f"{key}: no such setting.", fix="docs/operations.md lists all.") from None
        message = first["msg"].removeprefix("Value error, ").removeprefix(f"{key}: ").rstrip(".")
        raise ConfigurationError(f"{key}: {message}.") from None


def _first_line(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
