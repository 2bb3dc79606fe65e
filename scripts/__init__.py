"""Commands besides training and evaluation."""
