"""Training of one network: optimization, validation, curves and the record."""
