"""What a user's data can do wrong."""


class DataError(ValueError):
    """A mistake in the user's data, in one line that names the thing and what would be legal."""
