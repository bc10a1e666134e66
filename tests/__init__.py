"""Tests, and what they share with the demonstration and the benchmarks."""
