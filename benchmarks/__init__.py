"""The measurements of scripts/benchmark.py, one file per subject; each returns a section of the report."""
