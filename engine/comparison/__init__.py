"""One comparison table: its runs, their paired differences and its output formats."""
