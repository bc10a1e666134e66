"""A FUSE file system in Python that serves images where there is no squashfuse.

A program of its own, `python -m condainer.fuse IMAGE MOUNTPOINT`, which nobody imports. `squashfs`
reads the format with `codecs`, `vfs` makes files of it with the cache in `blocks`, `operations`
knows what their errors are called; `kernel` speaks the kernel's protocol, `attach` mounts,
`service` keeps threads and signals, `binding` chooses between that and libfuse's bindings, and
`options` reads the command line.
"""
