"""The error for data that cannot be used."""


class DataError(ValueError):
    """A data set or an image that cannot be used. The message names the file, the fault and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: object) -> str:
    """A text that can be printed: bytes of a file's name that are not UTF-8 are written as `\\udcff`."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")
