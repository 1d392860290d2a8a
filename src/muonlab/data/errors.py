"""What a user's data can do wrong."""

from muonlab.errors import UserError


class DataError(UserError):
    """A mistake in the user's data, in one line that names the thing and what would be legal."""
