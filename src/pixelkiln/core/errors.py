"""The one kind of error that is a user's."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake of the user's: one line that says what is wrong and what to do. The command line exits with status 2.

    Names come from files of others: what cannot be printed is escaped, and what is too long is cut in the middle.
    """

    status = 2

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in " ".join(message.split()))
        super().__init__(line if len(line) <= 800 else f"{line[:500]} … {line[-250:]}")
