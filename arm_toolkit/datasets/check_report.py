"""What a check of a data set found."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from arm_images.errors import printable


@dataclass
class Report:
    """What a check found.

    Attributes:
        what: the file or folder that was checked.
        errors: one line each: the fault, how often, and the first names.
        notes: one line each, nothing to repair.
        facts: the numbers behind the notes, by name.
        unseen: what was not looked at, and how to have it looked at.
    """

    what: str
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    unseen: str = ""

    @property
    def ok(self) -> bool:
        return not self.errors

    def error(self, message: str, names: Sequence | None = None) -> None:
        """Add an error with the first of `names`; none if these are given and empty."""
        if names is None or names:
            self.errors.append(message + some(names))

    def note(self, message: str, names: Sequence | None = None) -> None:
        """Like `error`, for a note."""
        if names is None or names:
            self.notes.append(message + some(names))

    def left_out(self, files: dict[str, list], where: str = "") -> None:
        """Note files that are not used, by reason."""
        for why, names in files.items():
            self.note(f"{where}left out {len(names)} {why}", names)

    def not_decoded(self, count: int, remedy: str = "--decode reads them") -> None:
        """Say that of some images only the header was read."""
        if count:
            self.unseen = f"the pixels of {count} images were not read: {remedy}"

    def __str__(self) -> str:
        count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        unseen = f" ({self.unseen})" if self.unseen else ""
        lines = [f"{self.what}: {'ok' if self.ok else count}{unseen}"]
        lines += [f"  error: {error}" for error in self.errors]
        return printable("\n".join(lines + [f"  note: {note}" for note in self.notes]))


def some(names: Sequence | None, most: int = 5) -> str:
    """The first names of a list, to follow a sentence."""
    if not names:
        return ""
    more = f", … ({len(names) - most} more)" if len(names) > most else ""
    return ": " + ", ".join(str(name) for name in names[:most]) + more


def reason(error: Exception) -> str:
    """An error in a few words."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]


def by(size: tuple[int, int]) -> str:
    """A size as text, such as 40x30."""
    return f"{size[0]}x{size[1]}"
