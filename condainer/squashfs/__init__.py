"""Reads SquashFS images; knows the format and nothing of the rest of condainer."""
