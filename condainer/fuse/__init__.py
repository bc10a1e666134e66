"""The room of the Python file system that is to serve images where there is no squashfuse.

It will be a program of its own, which nobody imports; nothing is here yet.
"""
