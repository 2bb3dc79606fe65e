"""One training: optimization, validation, curves and the record."""
