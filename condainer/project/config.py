"""`condainer.yml`: its keys, their defaults and meanings, reading it and writing a new one.

One table, `KEYS`, is behind the parser, the comments in the file that `init` writes, and the
did-you-mean. Where the files of a project are is the business of `project`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condainer.errors import ConfigError
from condainer.project import places
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Callable

    import yaml

    from condainer.project import yamlfile

CONFIG_NAME = "condainer.yml"

COMPRESSORS = {"zstd": (1, 22), "gzip": (1, 9), "xz": None, "lzo": (1, 9), "lz4": None}
"""The algorithms an image can be written with, each with the range of its levels."""

CHANNEL_PRIORITIES = ("flexible", "strict", "disabled")
"""How channels stand to each other, as conda has it."""

_PLAIN_LINE = re.compile(r"([a-z_]+):(?: +([A-Za-z0-9_./][A-Za-z0-9_./-]*)?)? *")
_NULLS = {"null", "Null", "NULL"}
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SIZE = re.compile(r"(\d+)([KkMm]?)")
_MIN_BLOCK, _MAX_BLOCK = 4096, 1 << 20
_PREFIX_MAX = 255
"""Packages reserve 255 bytes for the prefix they are installed at."""


@dataclass(frozen=True)
class Config:
    """A checked `condainer.yml`; the meaning of each field stands in `KEYS`."""

    uuid: str
    mount_base_directory: Path = Path(places.DEFAULT_BASE)
    environment_yml: str = "environment.yml"
    requirements_txt: str = "requirements.txt"
    conda_exe: str = ""
    installer_url: str = ""
    channel_priority: str = ""
    user_env_name: str = ""
    non_conda_application: bool = False
    package_cache: str = ""
    compression: str = ""
    compression_level: int | None = None
    block_size: int = 256 * 1024
    user_site_packages: bool = False
    keep_python_path: bool = False
    unmount_after: float = 10.0
    keep_extracted: bool = False
    trusted_users: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """One key of the file: how its text is read and what the file says about it."""

    name: str
    read: Callable[[str], Any]
    example: str
    comment: str


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    if text.startswith("//"):  # the same directory to the kernel, but another path to Python
        path = Path("/" + text.lstrip("/"))
    if ".." in path.parts or re.search(r"[\s'\"\\:]", text):
        raise ValueError("must be free of spaces, quotes, colons and '..' (package scripts break)")
    return path


def _uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError("must be a UUID such as 123e4567-e89b-42d3-a456-426614174000")
    return text.lower()


def _path(text: str) -> str:
    """A path, or a name, in which `~/` and `~user/` are as in a shell."""
    expanded = os.path.expanduser(text)  # noqa: PTH111  (Path's says less where there is no such user)
    if "/" in text and expanded.startswith("~"):
        raise ValueError("begins with the home directory of a user whom this machine does not know")
    return expanded


def _file(text: str) -> str:
    if "\0" in text or not text:
        raise ValueError("must name a file")
    return _path(text)


def _users(text: str) -> tuple[str, ...]:
    names = tuple(text.replace(",", " ").split())
    if not all(re.fullmatch(r"[\w.][\w.-]*\$?", name) for name in names):
        raise ValueError("must be names or numbers of users, with commas between them")
    return names


def _boolean(text: str) -> bool:
    choices = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in choices:
        raise ValueError("must be true or false")
    return choices[text.lower()]


def _compression(text: str) -> str:
    if text not in COMPRESSORS:
        raise ValueError(f"must be one of {', '.join(COMPRESSORS)}")
    return text


def _channel_priority(text: str) -> str:
    if text not in CHANNEL_PRIORITIES:
        raise ValueError(f"must be one of {', '.join(CHANNEL_PRIORITIES)}")
    return text


def _block_size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    size = int(match[1]) * {"": 1, "k": 1024, "m": 1 << 20}[match[2].lower()] if match else 0
    if size & (size - 1) or not _MIN_BLOCK <= size <= _MAX_BLOCK:
        raise ValueError("must be a power of two from 4K to 1M")
    return size


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:  # noqa: PLR2004  (a day)
        raise ValueError("must be a number of seconds from 0 to 86400")
    return seconds


KEYS = (
    Key(
        "mount_base_directory",
        _absolute,
        places.DEFAULT_BASE,
        "Where the environment lives while it is used: it is installed for, and mounted at,\n"
        "mount_base_directory/condainer-UUID. Best a directory local to each node, and it must\n"
        "exist on every node that uses the image.",
    ),
    Key(
        "uuid",
        _uuid,
        "",
        "The identity of this project: names the image and its mountpoint. Written once; do not\n"
        "change it (an image built before would no longer be found), and do not give it to a\n"
        "second project.",
    ),
    Key(
        "environment_yml",
        _file,
        "environment.yml",
        "What to install, as conda knows it; a 'prefix' in it counts for nothing.",
    ),
    Key(
        "requirements_txt",
        _file,
        "requirements.txt",
        "What pip adds afterwards; nothing where there is no such file.",
    ),
    Key(
        "conda_exe",
        _path,
        "micromamba",
        "The installer: a name or path of micromamba, mamba or conda, or 'rattler' for the one\n"
        "that comes with condainer. Left out, or a name that is not found: the first of these\n"
        "that is.\n"
        "The variable CONDAINER_INSTALLER goes before this key.",
    ),
    Key(
        "installer_url",
        str,
        "",
        "Read for the sake of older projects; nothing is downloaded from it any more.",
    ),
    Key(
        "channel_priority",
        _channel_priority,
        "flexible",
        "flexible: a channel goes before those below it, wherever that has a solution; strict: a\n"
        "package comes from the first channel that has it; disabled: the newest version counts.\n"
        "Left out: what .condarc says, or else the installer's own default (flexible).",
    ),
    Key(
        "user_env_name",
        str,
        "myenv",
        "The name that the prompt and CONDA_DEFAULT_ENV show. Left out: 'name' of environment_yml.",
    ),
    Key(
        "non_conda_application",
        _boolean,
        "false",
        "true: the mountpoint directory was filled by another installer; build compresses what\n"
        "is there and installs nothing.",
    ),
    Key(
        "package_cache",
        _path,
        "/scratch/me/pkgs",
        "Where downloaded packages are kept between builds. Left out: the installer's own place\n"
        "(CONDA_PKGS_DIRS for the mamba family; RATTLER_CACHE_DIR or ~/.cache/rattler).",
    ),
    Key(
        "compression",
        _compression,
        "zstd",
        "The image's compression: zstd, gzip, xz, lzo or lz4. Left out: zstd, or gzip where\n"
        "this machine's mksquashfs has no zstd.",
    ),
    Key(
        "compression_level",
        int,
        "6",
        "1 to 22 for zstd, 1 to 9 for gzip and lzo, none for xz and lz4. Higher is smaller and\n"
        "slower to write; reading is as fast. Left out: 6 for zstd, 9 for gzip.",
    ),
    Key(
        "block_size",
        _block_size,
        "256K",
        "How much is compressed together, 4K to 1M. Larger blocks make smaller images and quicker\n"
        "builds, smaller ones quicker small reads.",
    ),
    Key(
        "user_site_packages",
        _boolean,
        "false",
        "true: Python also sees what 'pip install --user' put into the home directory.",
    ),
    Key(
        "keep_python_path",
        _boolean,
        "false",
        "true: PYTHONPATH and PYTHONHOME of the calling shell reach the programs.",
    ),
    Key(
        "unmount_after",
        _seconds,
        "10",
        "Seconds for which a mount made by 'exec' is kept after its last use.",
    ),
    Key(
        "keep_extracted",
        _boolean,
        "false",
        "true: on nodes without FUSE, where the image is unpacked, the files stay after the last\n"
        "use, until 'condainer umount'.",
    ),
    Key(
        "trusted_users",
        _users,
        "alice, 1234",
        "Users, besides root, you and the image's owner, who may own or write to the directories\n"
        "that mountpoints lie in. They can change what your programs do. Left out: nobody.",
    ),
)


def parse(path: Path, text: str) -> Config:
    """Read the text of a `condainer.yml`.

    Args:
        path: named in errors.
        text: what the file holds.

    Raises:
        ConfigError: with file, line and reason.
    """
    values = _plain_values(text)
    if values is None:
        values = _yaml_values(path, text)
    if "uuid" not in values:
        raise ConfigError(
            f"{path}: the key 'uuid' is missing",
            "take the file that came with the image, or run 'condainer init' in a new directory",
        )
    config = Config(**values)
    prefix = places.Places(str(config.mount_base_directory), config.uuid).prefix
    if len(os.fsencode(prefix)) > _PREFIX_MAX:
        raise ConfigError(
            f"{path}: the mountpoint {prefix} is longer than {_PREFIX_MAX} bytes",
            "choose a shorter mount_base_directory",
        )
    return config


def load(directory: Path) -> Config:
    """Read and check the `condainer.yml` of a project directory.

    Raises:
        ConfigError: where there is none, or where it is broken.
    """
    return parse(directory / CONFIG_NAME, read(directory))


def read(directory: Path) -> str:
    """The text of the `condainer.yml` of a project directory.

    Raises:
        ConfigError: where there is none, or it cannot be read.
    """
    path = directory / CONFIG_NAME
    if files.is_missing(path):
        raise ConfigError(
            f"no condainer project in {directory} (there is no {CONFIG_NAME})",
            "run 'condainer init' there, or name the project directory with -d DIR",
        )
    return files.read_text(path)


def template(uuid: str, *, chosen: dict[str, str] | None = None) -> str:
    """The text of a new `condainer.yml` with every key explained.

    Args:
        uuid: the identity of the new project.
        chosen: keys that are to be set to something other than their default.
    """
    chosen = {**(chosen or {}), "uuid": uuid}
    plain = {"mount_base_directory", "environment_yml", "requirements_txt"}
    parts = ["# A condainer project. Commented keys show an example or the default.\n"]
    for key in KEYS:
        comment = "".join(f"# {line}\n" for line in key.comment.splitlines())
        off = "" if key.name in plain or key.name in chosen else "#"
        parts.append(f"{comment}{off}{key.name}: {_plain(chosen.get(key.name, key.example))}\n")
    return "\n".join(parts)


def _plain(text: str) -> str:
    """A value as YAML: quoted, unless it can be read in no other way than as it stands."""
    if re.fullmatch(r"([A-Za-z0-9_./][A-Za-z0-9_./-]*)?", text) and text not in _NULLS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _plain_values(text: str) -> dict[str, Any] | None:
    """Read what is as plain as `init` writes it: a parser of YAML takes long to load.

    Returns:
        the values; None where anything in the text is less plain, or wrong: `_yaml_values` reads
        all that is YAML, and knows how to tell what is wrong.
    """
    keys = {key.name: key for key in KEYS}
    values: dict[str, Any] = {}
    seen = set()
    for line in text.split("\n"):
        if not line or (line[0] == "#" and line.isprintable()):
            continue
        match = _PLAIN_LINE.fullmatch(line)
        if match is None or match[1] not in keys or match[1] in seen:
            return None
        name, value = match.groups()
        seen.add(name)
        try:
            if value and value not in _NULLS:
                values[name] = keys[name].read(value)
        except ValueError:
            return None
    return values if _is_level(values.get("compression"), values.get("compression_level")) else None


def _yaml_values(path: Path, text: str) -> dict[str, Any]:
    """Read any YAML.

    Raises:
        ConfigError: with file, line and reason.
    """
    from condainer.project import yamlfile

    document = yamlfile.YamlFile(path, text)
    document.check_keys(key.name for key in KEYS)
    values: dict[str, Any] = {}
    for key in KEYS:
        node = document.value(key.name)
        if node is not None:
            values[key.name] = _read(document, node, key)
    algorithm, level = values.get("compression"), values.get("compression_level")
    if not _is_level(algorithm, level):
        node = document.items["compression_level"][1]
        name = algorithm or "zstd"
        levels = COMPRESSORS[name]
        if levels is None:
            raise document.error(node, f"{name} has no levels", "remove the key compression_level")
        raise document.error(node, f"{name} has levels {levels[0]} to {levels[1]}")
    return values


def _read(document: yamlfile.YamlFile, node: yaml.Node, key: Key) -> object:
    text = document.line(node, f"'{key.name}'")
    try:
        return key.read(text)
    except ValueError as error:
        reason = str(error)
        if reason.startswith(("invalid literal", "could not convert")):
            reason = "must be a whole number" if key.read is int else "must be a number"
        raise document.error(node, f"{key.name}: '{text}' {reason}") from None


def _is_level(algorithm: str | None, level: int | None) -> bool:
    """Whether an algorithm has a level."""
    levels = COMPRESSORS[algorithm or "zstd"]
    return level is None or (levels is not None and levels[0] <= level <= levels[1])


if {field.name for field in fields(Config)} != {key.name for key in KEYS}:  # pragma: no cover
    raise AssertionError("Config and KEYS name different keys")
