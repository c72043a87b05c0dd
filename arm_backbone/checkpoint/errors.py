"""The error for checkpoints, and the errors of other packages in one line."""

_LONGEST = 300  # characters of a message


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit the model; the message says what to do."""


def in_one_line(error: Exception) -> str:
    """The whole message of another package's error without its line breaks, shortened; its class's name if empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
