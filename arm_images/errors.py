"""The error for data that cannot be used."""


class DataError(ValueError):
    """A data set or an image that cannot be used. The message names the file, the fault and the remedy."""
