"""One comparison table: which runs enter it, their paired differences and its forms."""
