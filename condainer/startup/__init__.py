"""The files that programs read first: the list, where they lie, and what records it."""
