"""File systems in Python that mount an image where there is no squashfuse.

Both are programs of their own, which nobody imports. `python -m condainer.fuse IMAGE MOUNTPOINT` is
the backend `python`: `squashfs` reads the image, `posix` says what that is in terms of an operating
system, `kernel` answers the kernel's requests in the terms of `protocol`, `attach` mounts,
`service` keeps threads and signals, and `options` reads the command line. `python -m
condainer.fuse.portable` is the backend `fusepy`, made of two libraries.
"""
