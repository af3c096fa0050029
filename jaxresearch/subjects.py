"""Subjects: the source trees that a study may edit, found by entry point or by path, and never imported here."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from jaxresearch.errors import ConfigurationError
from jaxresearch.proposal import SUBJECT_FOLDER, Candidate, Scalar

ENTRY_POINT_GROUP = "jaxresearch.subjects"
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class InstalledSubject:
    """What `jaxresearch subjects` lists."""

    name: str
    summary: str
    origin: str
    folder: Path


def installed_subjects() -> dict[str, InstalledSubject]:
    """All subjects that entry points declare, by name."""
    found = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        spec = find_spec(point.value)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigurationError(f"subject {point.name!r}: its package {point.value} is not installed.")
        folder = Path(next(iter(spec.submodule_search_locations)))
        if not (folder / "recipe.py").is_file():
            raise ConfigurationError(
                f"subject {point.name!r}: {folder} has no recipe.py; another package {point.value!r} is in its place.",
                fix="Install jaxresearch into a virtual environment of its own.",
            )
        origin = point.dist.name if point.dist else point.value
        found[point.name] = InstalledSubject(point.name, _summary(folder), origin, folder)
    return dict(sorted(found.items()))


def load_subject(source: str, hyperparameters: dict[str, Scalar]) -> Candidate:
    """The baseline candidate of an installed subject's name, or of a folder that holds recipe.py."""
    subjects = installed_subjects()
    folder = subjects[source].folder if source in subjects else Path(source)
    if not (folder / "recipe.py").is_file():
        raise ConfigurationError(
            f"subject.source: {source!r} is neither an installed subject nor a folder with recipe.py.",
            fix=f"Installed: {', '.join(subjects)}.",
        )
    files = {}
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        if path.is_symlink() or any(part.startswith((".", "__pycache__")) for part in relative.parts):
            continue
        try:
            files[f"{SUBJECT_FOLDER}/{relative.as_posix()}"] = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"subject.source: {path} cannot be read: {error}.") from None
    files.setdefault(f"{SUBJECT_FOLDER}/__init__.py", "")
    if sum(map(len, files.values())) > _MAX_BYTES:
        raise ConfigurationError(f"subject.source: {folder} holds more than {_MAX_BYTES:,} characters of Python.")
    return Candidate(files=files, config=dict(hyperparameters))


def _summary(folder: Path) -> str:
    try:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
    except (OSError, SyntaxError, UnicodeDecodeError):
        docstring = None
    return (docstring or "").strip().split("\n")[0]
