"""The error for data that cannot be used."""


class DataError(ValueError):
    """A data set that cannot be used; the message names the file and the remedy."""
