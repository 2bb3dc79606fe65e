"""The error for what a user can get wrong about a model."""


class ModelError(ValueError):
    """A model that cannot be built as asked. The message is a sentence that says what to do."""
