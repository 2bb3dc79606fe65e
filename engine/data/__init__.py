"""Images from the disk to batches on the device."""
