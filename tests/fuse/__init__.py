"""Tests of the reader of SquashFS and of the file system in Python."""
