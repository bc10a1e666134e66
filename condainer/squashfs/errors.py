"""The errors of this library. All of them derive from `SquashfsError`."""


class SquashfsError(Exception):
    """Something about an image is not as it was expected to be."""


class FormatError(SquashfsError):
    """The image is damaged, or it is no SquashFS 4.0 image at all."""


class CodecError(SquashfsError):
    """A block cannot be decompressed, or this machine lacks what its compression needs."""


class NotFoundError(SquashfsError):
    """There is no such name."""


class WrongKindError(SquashfsError):
    """An inode is of another kind than the one that was asked for."""
