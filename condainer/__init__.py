"""Condainer: conda environments as single compressed files, mounted where they were built for."""

__version__ = "0.1.0"
