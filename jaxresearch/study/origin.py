"""`run --from STUDY`: a study that begins where another one ended. Its baseline is the other's winner, measured anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxresearch.config import StudyConfig, SubjectConfig
from jaxresearch.errors import ConfigurationError
from jaxresearch.proposal import Candidate
from jaxresearch.study.events import Origin
from jaxresearch.study.history import History
from jaxresearch.study.study import Study


@dataclass(frozen=True)
class Winner:
    """The last kept experiment of another study, and the fingerprints of what it was searched on."""

    origin: Origin
    candidate: Candidate
    corpus: str
    tokenizer: str

    def check_corpus(self, *, corpus: str, tokenizer: str) -> None:
        """Refuse to go on from a winner that was chosen on another corpus or tokenizer."""
        for what, now, then in (("corpus", corpus, self.corpus), ("tokenizer", tokenizer, self.tokenizer)):
            if now != then:
                raise ConfigurationError(
                    f"--from {self.origin.study}: its {what} is {then[:19]}, and that of this study {now[:19]}.",
                    fix="Give --corpus and corpus.vocab_size as that study has them.",
                )


def winner_of(folder: Path, config: StudyConfig) -> tuple[Winner, StudyConfig]:
    """What `folder` found, and `config` with its subject.

    Raises `ConfigurationError` where settings that shape the subject disagree, and `JaxresearchError` where there is
    no study, or one that kept nothing.
    """
    study = Study.open(folder, read_only=True)
    try:
        history = study.history
        best = history.incumbent.experiment
        if best.number == 0:
            raise ConfigurationError(f"--from {folder}: it has kept nothing, so its winner is its own baseline.")
        candidate = study.candidate(best.number)
    finally:
        study.close()
    _check(folder, history, candidate, config)
    origin = Origin(
        study=str(folder),
        head=history.head,
        experiment=best.number,
        commit=best.commit,
        val_bpb=best.val_bpb,
        budget=history.config.budget,
    )
    subject = SubjectConfig(source=history.config.subject.source, hyperparameters=dict(candidate.config))
    winner = Winner(origin, candidate, history.created.corpus, history.created.tokenizer)
    return winner, config.model_copy(update={"subject": subject})


def _check(folder: Path, history: History, winner: Candidate, config: StudyConfig) -> None:
    theirs = history.config
    for key, ours, wanted in (
        ("subject.source", config.subject.source, theirs.subject.source),
        ("context", config.context, theirs.context),
    ):
        if ours != wanted:
            raise ConfigurationError(
                f"--from {folder}: its {key} is {wanted}, not {ours}.", fix=f"--set {key}={wanted}"
            )
    for name, value in config.subject.hyperparameters.items():
        if name not in winner.config or winner.config[name] != value:
            raise ConfigurationError(
                f"--from {folder}: subject.hyperparameters.{name} = {value} would not be its winner.",
                fix="Leave it out: the winner's own values are used.",
            )
