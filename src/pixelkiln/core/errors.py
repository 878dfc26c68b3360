"""The one kind of error that is a user's."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake of the user's: one line that says what is wrong and what to do. The command line exits with status 2."""

    status = 2
