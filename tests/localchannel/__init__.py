"""A real conda channel, made without conda and without a conda channel.

The interpreter that runs this and ordinary wheels from PyPI are packed into conda packages, and a
channel is made of them. `ensure` is the way in; `python -m tests.localchannel KIND` is the same
for a shell.
"""

from tests.localchannel.channel import Kind, ensure, package_names
from tests.localchannel.package import PLACEHOLDER

__all__ = ["PLACEHOLDER", "Kind", "ensure", "package_names"]
