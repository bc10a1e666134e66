"""What condainer asks of the operating system: processes, files, locks, users."""
