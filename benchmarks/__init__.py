"""Measurements; what must be reached is said there, and never in a test."""
