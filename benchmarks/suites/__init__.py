"""What `python -m benchmarks` measures: a module for each kind of load, all of the same shape.

Each has `TITLE`, `ABOUT` (a paragraph for the report), `measure(bench)`, which gives samples as
they come, and `tables(samples)` and `figures(samples)`, which show them.
"""
