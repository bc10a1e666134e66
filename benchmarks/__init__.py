"""Measurements; what must be reached is said here, and never in a test.

`python -m benchmarks` measures what an image saves on a machine, against what there is otherwise:

    __main__ → suites → results.json → report.md, report.html, pictures
                  └ contenders, places, turns, writing
                       └ layer (← passthrough), crowd: programs that suites run

`samples` is what travels between these; `compare` finds what became slower between two results.

Beside that, `exec`, `filesystem`, `layout` and `overlap` are programs of their own: each looks at
one part more closely than a report would, or holds it to a bar.
"""
