"""The exception for user errors."""


class UserError(Exception):
    """Raised for what only the user can fix. The message says in one or two sentences what is wrong and what to do."""
