"""Tests of the tools beside the package: benchmarks, local channel, stand-in, installation."""
