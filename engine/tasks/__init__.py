"""Tasks, each with its loss, predictions and table columns."""
