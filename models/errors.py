"""The error for invalid model requests."""


class ModelError(ValueError):
    """A model that cannot be built as requested. The message says what to do."""
