"""Reads the command line of both file systems, which is that of `squashfuse_ll`.

It does not use `argparse`, whose import takes longer than mounting a small image, and which cannot
read `-o a,b=c` as mount(8) does.
"""

from __future__ import annotations

import os
from typing import NamedTuple

USAGE = """\
usage: python -m condainer.fuse [options] IMAGE MOUNTPOINT

  -h  --help      this help
  -V  --version   the version
  -f              stay in the foreground
  -d  -o debug    the same, and print each request
  -s              one thread only
  -o OPTION[,OPTION...]
      ro                    read-only, as it always is
      allow_other           let other users in
      allow_root            let root in
      default_permissions   have the kernel check permissions
      uid=N, gid=N          whom everything belongs to
      offset=N              bytes of the file before the image
      subdir=PATH           directory of the image that becomes the root
      timeout=SECONDS       unmount when nobody has asked for anything for so long
      notify_pipe=PATH      write 's' there when mounted, 'f' when that failed
      fsname=NAME           what the mount table names as the source
      nodev, nosuid, noexec, noatime
"""

_FLAGS = ("ro", "nosuid", "nodev", "noexec", "noatime")
_MEANINGLESS = {"rw", "dev", "suid", "exec", "atime"}
"""Accepted and ignored: an image is read-only, and has neither devices nor set-user-ID programs."""


class UsageError(Exception):
    """The command line is wrong."""


class UnknownOptionError(UsageError):
    """There is no such option."""


class Options(NamedTuple):
    """What a command line asks for.

    Attributes:
        image: path of the file.
        mountpoint: directory, or `/dev/fd/N`.
        foreground: stay there.
        debug: print each request.
        single: use one thread only.
        flags: of every file system.
        allow_other: let other users in.
        allow_root: let root in.
        default_permissions: have the kernel check permissions.
        uid: owner of everything; None for what the image says.
        gid: the same for the group.
        offset: bytes of the file before the image.
        subdir: path of the directory that becomes the root.
        timeout: seconds without requests after which it is unmounted; 0 for never.
        notify_pipe: path of a pipe that is told when it is mounted; empty for none.
        fsname: source for the mount table.
    """

    image: str
    mountpoint: str
    foreground: bool = False
    debug: bool = False
    single: bool = False
    flags: tuple[str, ...] = ("ro", "nosuid", "nodev")
    allow_other: bool = False
    allow_root: bool = False
    default_permissions: bool = False
    uid: int | None = None
    gid: int | None = None
    offset: int = 0
    subdir: str = ""
    timeout: int = 0
    notify_pipe: str = ""
    fsname: str = ""


INHERITED = "/dev/fd/"
"""Begins a mountpoint that is a descriptor of /dev/fuse, which another process has mounted."""

_SWITCHES = {"-f": "foreground", "-d": "debug", "-s": "single"}
_WORDS = {"debug", "allow_other", "allow_root", "default_permissions"}
_NUMBERS = {"uid": 2**32 - 2, "gid": 2**32 - 2, "offset": 2**63 - 1, "timeout": 2**31 - 1}
"""The largest that the system takes."""
_PATHS = {"notify_pipe"}
_TEXTS = {"subdir", "fsname"}


def parse(arguments: list[str]) -> Options:
    """Read a command line.

    Args:
        arguments: without the program's name.

    Raises:
        UsageError: If something is unknown, wrong or missing; the error names it.
    """
    found: dict[str, object] = {}
    places: list[str] = []
    flags = list(Options._field_defaults["flags"])
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            places += rest
        elif argument in _SWITCHES:
            found[_SWITCHES[argument]] = True
        elif argument.startswith("-o"):
            text = argument[2:] or next(rest, "")
            if not text:
                raise UsageError("-o needs an option")
            for option in _split(text):
                _take(option, found, flags)
        elif argument.startswith("-") and argument != "-":
            raise UnknownOptionError(f"unknown option {argument}")
        else:
            places.append(argument)
    if len(places) != 2:  # noqa: PLR2004  (image and mountpoint)
        raise UsageError("an image and a mountpoint are needed")
    image, mountpoint = _absolute(places[0]), _real(places[1])
    if found.get("debug"):
        found["foreground"] = True
    found.setdefault("fsname", image)
    return Options(image, mountpoint, flags=tuple(flags), **found)  # type: ignore[arg-type]


def _take(option: str, found: dict[str, object], flags: list[str]) -> None:
    name, equals, value = option.partition("=")
    if name in _FLAGS and not equals:
        flags.append(name)
    elif name in _WORDS and not equals:
        found[name] = True
    elif name in _NUMBERS and equals:
        found[name] = _number(name, value)
    elif name in _PATHS and value:
        found[name] = _absolute(value)
    elif name in _TEXTS and value:
        found[name] = value
    elif option not in _MEANINGLESS:
        raise UnknownOptionError(f"unknown option -o {option}")


def _number(name: str, value: str) -> int:
    most = _NUMBERS[name]
    is_number = value.isascii() and value.isdigit() and len(value) <= len(str(most))
    if not is_number or int(value) > most:
        raise UsageError(f"{name}= needs a number up to {most}, not '{value}'")
    return int(value)


def _absolute(path: str) -> str:
    """A path that means the same in each directory; `..` behind a link stays as it is."""
    if path.startswith("/"):
        return path
    return os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118  (pathlib is slow to import)


def _real(mountpoint: str) -> str:
    """A mountpoint without links: fusermount refuses them, and they may change later."""
    if mountpoint.startswith(INHERITED):
        return mountpoint
    return os.path.realpath(mountpoint)


def _split(text: str) -> list[str]:
    r"""Splits options at commas as libfuse does; `\,` and `\054` are commas in a value."""
    parts, place = [""], 0
    while place < len(text):
        letter = text[place]
        if letter == ",":
            parts.append("")
        elif letter == "\\" and place + 1 < len(text):
            octal = text[place + 1 : place + 4]
            if len(octal) == 3 and octal[0] in "0123" and not octal.strip("01234567"):  # noqa: PLR2004
                parts[-1] += os.fsdecode(bytes([int(octal, 8)]))
                place += 3
            else:
                place += 1
                parts[-1] += text[place]
        else:
            parts[-1] += letter
        place += 1
    return [part for part in parts if part]


def escaped(value: str) -> str:
    """A value as it is written among options, between commas.

    Args:
        value: any text.
    """
    return value.replace("\\", "\\\\").replace(",", "\\,")
