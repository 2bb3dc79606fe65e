"""Attention in a network: the kinds, with one file for each of this repository's own, and their insertion."""
