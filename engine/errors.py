"""The error for what a user can get wrong."""


class UserError(Exception):
    """Something only the user can put right. The message is one sentence or two: what is wrong, what to do."""
