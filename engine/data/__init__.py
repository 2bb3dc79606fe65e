"""Data pipeline from image files to batches on the device."""
