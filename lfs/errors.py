"""Errors that the user can mend: the command line prints their sentence and exits with code 2."""


class UserError(ValueError):
    """Something that the user gave cannot be used; the message is one sentence that says what would be right."""
