"""The commands of `condainer`: one module per command, named after it.

Each has `EXAMPLES`, `add_arguments` and `run`, which `cli` calls. The line that the general help
shows for it is in `cli`, so that the help imports no command. `console` writes what commands say,
and `progress` draws a build.
"""
