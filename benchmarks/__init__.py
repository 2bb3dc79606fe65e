"""What scripts/benchmark.py measures, a subject a file; each returns a section of its report."""
