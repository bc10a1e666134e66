"""Tests of the program as its users have it: real builds, real mounts, real processes."""
