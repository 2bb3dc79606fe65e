"""Processes: launchers, communication, signals, devices and random numbers."""
