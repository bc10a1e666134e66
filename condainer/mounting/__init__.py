"""From an image to a mountpoint, and back: backends, the mount table, the life of a mount."""
