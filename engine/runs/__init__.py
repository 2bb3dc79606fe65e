"""Run directories: their files, and the keys that identify a run."""
