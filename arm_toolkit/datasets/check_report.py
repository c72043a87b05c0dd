"""What a check of a data set found."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Report:
    """What a check found.

    Attributes:
        what: the file or folder that was checked.
        errors: one line each: the fault, how often, and the first names.
        notes: one line each, nothing to repair.
        facts: the numbers behind the notes, by name.
    """

    what: str
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.errors

    def error(self, message: str, names: Sequence | None = None) -> None:
        """Add an error with the first of `names`; none if these are given and empty."""
        if names is None or names:
            self.errors.append(message + _some(names))

    def note(self, message: str, names: Sequence | None = None) -> None:
        """Like `error`, for a note."""
        if names is None or names:
            self.notes.append(message + _some(names))

    def __str__(self) -> str:
        lines = [f"{self.what}: {'ok' if self.ok else f'{len(self.errors)} error(s)'}"]
        lines += [f"  error: {error}" for error in self.errors]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def _some(names: Sequence | None, most: int = 5) -> str:
    if not names:
        return ""
    more = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ": " + ", ".join(str(name) for name in names[:most]) + more


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
