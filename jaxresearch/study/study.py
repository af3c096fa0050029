"""Study: one search in its folder. Create it or open it, then run it; running again is resuming."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import yaml

from jaxresearch.config import StudyConfig
from jaxresearch.errors import ConfigurationError, JaxresearchError
from jaxresearch.execution.base import Executor
from jaxresearch.files import sweep_drafts
from jaxresearch.proposal import Candidate
from jaxresearch.statistics.acceptance import Acceptance
from jaxresearch.statistics.rules import make_rule
from jaxresearch.strategy import Strategy
from jaxresearch.study.approval import NO_TERMINAL, Approver
from jaxresearch.study.confirm import DEFAULT_SEEDS, confirm
from jaxresearch.study.control import obeyed, wish_of
from jaxresearch.study.deadline import check_caps, deadline
from jaxresearch.study.driver import Driver, Ending
from jaxresearch.study.events import Origin, StudyCreated
from jaxresearch.study.history import History
from jaxresearch.study.hooks import Hooks
from jaxresearch.study.identity import candidate_fingerprint, text_fingerprint
from jaxresearch.study.journal import Journal
from jaxresearch.study.judging import fresh_seeds
from jaxresearch.study.layout import StudyLayout, create_folder, no_study
from jaxresearch.study.ledger import Ledger, StoredEvent
from jaxresearch.study.lock import sole_driver
from jaxresearch.study.reporter import Reporter
from jaxresearch.study.shelf import GIGABYTE, Shelf
from jaxresearch.study.stopping import Stop
from jaxresearch.study.view import ModelFactory, diff_of
from jaxresearch.study.watch import Watch
from jaxresearch.study.workspace import Workspace


class Study:
    """A study folder, open. Reading needs no lock; `run` takes it."""

    def __init__(self, layout: StudyLayout, journal: Journal, workspace: Workspace, clock: Callable[[], float]) -> None:
        self.layout = layout
        self.workspace = workspace
        self._journal = journal
        self._clock = clock

    @classmethod
    def create(
        cls,
        folder: Path,
        config: StudyConfig,
        subject: Candidate,
        *,
        corpus: str,
        tokenizer: str,
        instructions: str = "",
        origin: Origin | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """A new study in `folder`, which must be absent or empty. It is there whole, or not at all.

        subject: the baseline. corpus, tokenizer: fingerprints of what its runs are made on. instructions: the text of
        program.md. origin: whose winner `subject` is. Raises `JaxresearchError` in one line.
        """
        created = StudyCreated(
            config=config,
            subject=candidate_fingerprint(subject),
            corpus=corpus,
            tokenizer=tokenizer,
            instructions=text_fingerprint(instructions),
            jaxresearch=_version("jaxresearch"),
            jax=_version("jax"),
            python=platform.python_version(),
            origin=origin,
        )

        def fill(layout: StudyLayout) -> None:
            layout.settings.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "utf-8")
            layout.instructions.write_text(instructions, "utf-8")
            ledger = Ledger.create(layout.ledger, clock=clock)
            (first,) = ledger.append(created)
            ledger.close()
            workspace, message = Workspace.create(layout.workspace), f"The baseline\n\nLedger: {first.hash}"
            workspace.set_incumbent(workspace.commit(0, subject, None, message, when=first.time))

        layout = create_folder(folder, fill)
        return cls.open(layout.folder, clock=clock)

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float] = time.time, read_only: bool = False) -> Self:
        """The study in `folder`, its ledger's chain checked. Raises `JaxresearchError` in one line.

        read_only: for who only looks; the folder may then be on a disk that cannot be written. What models were sent is
        then checked when it is read.
        """
        layout = StudyLayout(folder.absolute())
        if not layout.exists:
            raise no_study(folder)
        ledger = Ledger.open(layout.ledger, clock=clock, read_only=read_only)
        journal = Journal(ledger, whole=not read_only)
        return cls(layout, journal, Workspace.open(layout.workspace), clock)

    @property
    def history(self) -> History:
        """The study up to the last event that this process knows of."""
        return self._journal.history

    @property
    def config(self) -> StudyConfig:
        return self.history.config

    @property
    def rule(self) -> Acceptance:
        """The rule of acceptance that the settings name."""
        return make_rule(self.config)

    def events(self, *, whole: bool = True) -> Iterator[StoredEvent]:
        """All events of the ledger in order, the chain checked on the way. whole: with what models were sent."""
        return self._journal.ledger.read(whole=whole)

    def refresh(self) -> History:
        """The history with what another process has added since."""
        self._journal = Journal(self._journal.ledger, whole=False)
        return self.history

    def diff(self, number: int) -> str:
        """Unified diff of experiment `number` against its parent."""
        return diff_of(self.history, self.workspace, number)

    def candidate(self, number: int) -> Candidate:
        """Sources and config of experiment `number`. Raises `JaxresearchError` when there is none."""
        last = len(self.history.entries) - 1
        if not 0 <= number <= last:
            raise JaxresearchError(
                f"{self.layout.folder} has no experiment {number}.", fix=f"It has 0 to {last}; see `jaxresearch show`."
            )
        if not self.history.entries[number].experiment.commit:
            raise JaxresearchError(
                f"Experiment {number} has no sources: it could not be applied, or is not yet.", fix="Choose another."
            )
        return self.workspace.candidate(self.history.entries[number].experiment.commit)

    @property
    def begun_with(self) -> tuple[str, str]:
        """Fingerprints of the text and of the tokenizer; see `prepare_corpus`."""
        return self.history.created.corpus, self.history.created.tokenizer

    def check_corpus(self, *, corpus: str, tokenizer: str) -> None:
        """Refuse another corpus or tokenizer than the study began with: scores could not be compared."""
        created = self.history.created
        for what, now, then in (("corpus", corpus, created.corpus), ("tokenizer", tokenizer, created.tokenizer)):
            if now != then:
                raise JaxresearchError(
                    f"The {what} has changed since the study began: {now[:19]} instead of {then[:19]}.",
                    fix="Restore it, or the prepared one in the cache, or start a new study.",
                )

    def verify(self) -> int:
        """Check the ledger's chain against itself and the workspace; the number of events. See `Ledger.verify`."""
        return self._journal.ledger.verify(self.workspace.anchors())

    def _shelf(self) -> Shelf | None:
        """None for a study whose runs are a tournament's: several studies would prune them, so none keeps states."""
        if self.layout.tournament is not None:
            return None
        return Shelf(self.layout.runs, self.config.execution.checkpoint_gb * GIGABYTE)

    def check_head(self, head: str) -> None:
        """Raise `JaxresearchError` unless an event has the hash `head`, or one of that beginning (12 digits at least)."""
        wanted = head.strip().lower()
        if len(wanted) < 12 or any(digit not in "0123456789abcdef" for digit in wanted):
            raise ConfigurationError(f"--head: {head!r} is no head of a ledger.", fix="Give at least 12 of its digits.")
        if not any(stored.hash.startswith(wanted) for stored in self.events(whole=False)):
            raise JaxresearchError(
                f"The ledger was cut short or rewritten: the head {wanted[:16]} that you noted is not in it.",
                fix="Restore it from a backup.",
            )

    async def run(
        self,
        executor: Executor,
        strategy: Strategy,
        model_factory: ModelFactory,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
        *,
        acceptance: Acceptance | None = None,
        pause: Callable[[History], str | None] = lambda history: None,
        approver: Approver | None = None,
        hooks: Hooks | None = None,
        **caps: float | None,
    ) -> Ending:
        """Drive the study until it ends or `stop` is requested. Calling it again, in any process, goes on.

        pause: asked whenever nothing is pending; a reason ends the session there, in good order.
        approver: asks a person about changes of the sources; `oversight.approve=code` cannot do without.
        hooks: tells of what happens. caps: other ends than before, by name (`CAPS`), for this session and later ones.

        Raises `StudyLocked` when another process drives it, and `JaxresearchError` when it cannot go on as things are.
        The caller closes `executor`.
        """
        if self.config.oversight.approve == "code" and approver is None:
            raise NO_TERMINAL
        stop = stop or Stop()
        check_caps(self.history, caps)
        with sole_driver(self.layout.lock, now=self._clock()):
            watch = Watch(self.layout, stop, reporter, hooks)
            self._begin(watch.reporter)
            driver = Driver(
                self._journal,
                self.workspace,
                executor=executor,
                strategy=strategy,
                model_factory=model_factory,
                acceptance=acceptance or self.rule,
                instructions=self.instructions,
                stop=stop,
                clock=self._clock,
                pause=pause,
                shelf=self._shelf(),
                pause_wanted=lambda: wish_of(self.layout) == "pause",
                approver=approver,
                caps=caps,
            )
            max_seconds = caps.get("max_seconds") or self.history.max_seconds
            async with watch, obeyed(self.layout, stop):
                with deadline(self.history, max_seconds, stop):
                    return await driver.drive()

    async def confirm(
        self,
        executor: Executor,
        reporter: Reporter | None = None,
        stop: Stop | None = None,
        *,
        count: int = DEFAULT_SEEDS,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """Open the sealed test for baseline and incumbent on `count` fresh seeds (or these), or finish an opening.

        Raises as `run` does, and `Interrupted` when `stop` was requested; calling it again goes on.
        """
        stop = stop or Stop()

        async def work(journal: Journal, workspace: Workspace) -> None:
            del workspace
            await confirm(journal, executor, seeds or fresh_seeds(journal.history, count), stop)

        await self.beside(work, reporter, stop)

    async def beside(
        self,
        work: Callable[[Journal, Workspace], Coroutine[Any, Any, None]],
        reporter: Reporter | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Do `work` on the study as its one driver: a confirmation, an ablation, a transfer.

        stop: the one that `work` heeds. Raises as `work` does, and `StudyLocked`.
        """
        stop = stop or Stop()
        with sole_driver(self.layout.lock, now=self._clock()):
            watch = Watch(self.layout, stop, reporter)
            self._begin(watch.reporter)
            async with watch, obeyed(self.layout, stop, stopping=("pause", "stop")):
                await work(self._journal, self.workspace)

    def _begin(self, reporter: Reporter) -> None:
        """What every driver does first, the lock in its hands: read all there is, and refuse a ledger that was cut."""
        self._journal = Journal(self._journal.ledger, reporter)
        self._journal.ledger.check_anchors(self.workspace.anchors())
        if self.layout.tournament is None:  # else other studies may be writing there
            sweep_drafts(self.layout.programs)
            sweep_drafts(self.layout.runs, depth=3)

    def close(self) -> None:
        self._journal.ledger.close()

    def instructions(self) -> str:
        """The text of program.md as it is now."""
        try:
            return self.layout.instructions.read_text("utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise JaxresearchError(f"{self.layout.instructions} cannot be read: {error}.") from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
