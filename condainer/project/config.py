"""Reads `condainer.yml`, the settings of a project, and writes a new one.

The table `KEYS` holds the name, the meaning and the example of each key. The parser, the comments
in a new file and the suggestions for a wrong key come from it. `values` checks the values, and
`project` knows where a project's files are.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condainer.errors import ConfigError
from condainer.project import places, values
from condainer.system import files

if TYPE_CHECKING:
    from collections.abc import Callable

    import yaml

    from condainer.project import yamlfile

CONFIG_NAME = "condainer.yml"

_PLAIN_LINE = re.compile(r"([a-z_]+):(?: +([A-Za-z0-9_./][A-Za-z0-9_./-]*)?)? *")
_NULLS = {"null", "Null", "NULL"}
_PREFIX_MAX = 255
"""Packages reserve 255 bytes for the prefix they are installed at."""


@dataclass(frozen=True)
class Config:
    """A checked `condainer.yml`. `KEYS` explains each field."""

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
    """One key of the file.

    Attributes:
        name: the key.
        read: makes a value of its text; raises ValueError with a reason.
        example: the value in a new file.
        comment: the explanation in a new file.
    """

    name: str
    read: Callable[[str], Any]
    example: str
    comment: str


KEYS = (
    Key(
        "mount_base_directory",
        values.absolute,
        places.DEFAULT_BASE,
        "The environment is installed for mount_base_directory/condainer-UUID, and mounted there.\n"
        "Best choose a directory that is local to each node. It must exist on every node that\n"
        "uses the image.",
    ),
    Key(
        "uuid",
        values.uuid,
        "",
        "The identity of this project: the image and its mountpoint are named after it. Do not\n"
        "change it: an existing image would no longer be found. Do not use it in a second\n"
        "project.",
    ),
    Key(
        "environment_yml",
        values.file,
        "environment.yml",
        "What to install, in conda's format; 'prefix' in it is ignored.",
    ),
    Key(
        "requirements_txt",
        values.file,
        "requirements.txt",
        "What pip installs afterwards; this file need not exist.",
    ),
    Key(
        "conda_exe",
        values.path,
        "micromamba",
        "The installer: the name or path of micromamba, mamba or conda, or 'rattler', which comes\n"
        "with condainer. If this is left out, or not found: the first of these that is found.\n"
        "The variable CONDAINER_INSTALLER overrides this key.",
    ),
    Key(
        "installer_url",
        str,
        "",
        "Accepted because older projects have it; it has no effect.",
    ),
    Key(
        "channel_priority",
        values.channel_priority,
        "flexible",
        "flexible: prefer channels that are listed first, if there is a solution; strict: take a\n"
        "package from the first channel that has it; disabled: take the newest version.\n"
        "Left out: what .condarc says, otherwise the installer's default (flexible).",
    ),
    Key(
        "user_env_name",
        str,
        "myenv",
        "The name that the prompt and CONDA_DEFAULT_ENV show. Left out: 'name' of environment_yml.",
    ),
    Key(
        "non_conda_application",
        values.boolean,
        "false",
        "true: another installer has filled the mountpoint directory; build compresses what is\n"
        "there, and installs nothing.",
    ),
    Key(
        "package_cache",
        values.path,
        "/scratch/me/pkgs",
        "Where downloaded packages are kept between builds. Left out: the installer's default\n"
        "(CONDA_PKGS_DIRS for the mamba family; RATTLER_CACHE_DIR or ~/.cache/rattler).",
    ),
    Key(
        "compression",
        values.compression,
        "zstd",
        "The compressor of the image: zstd, gzip, xz, lzo or lz4. Left out: zstd, or gzip if\n"
        "this machine's mksquashfs has no zstd.",
    ),
    Key(
        "compression_level",
        int,
        "6",
        "1 to 22 for zstd, 1 to 9 for gzip and lzo, none for xz and lz4. A higher level makes a\n"
        "smaller image and a slower build. Reading stays as fast. Left out: 6 for zstd, 9 for\n"
        "gzip.",
    ),
    Key(
        "block_size",
        values.block_size,
        "256K",
        "How much is compressed together: 4K to 1M. Larger blocks make smaller images and faster\n"
        "builds; smaller blocks make small reads faster.",
    ),
    Key(
        "user_site_packages",
        values.boolean,
        "false",
        "true: Python also sees what 'pip install --user' has put into the home directory.",
    ),
    Key(
        "keep_python_path",
        values.boolean,
        "false",
        "true: programs also get PYTHONPATH and PYTHONHOME of the calling shell.",
    ),
    Key(
        "unmount_after",
        values.seconds,
        "10",
        "Seconds that an image stays mounted after its last use, if 'exec' has mounted it.",
    ),
    Key(
        "keep_extracted",
        values.boolean,
        "false",
        "true: on nodes without FUSE, where the image is unpacked, the unpacked files stay after\n"
        "the last use, until 'condainer umount'.",
    ),
    Key(
        "trusted_users",
        values.users,
        "alice, 1234",
        "Users who may own, or write to, the directories above the mountpoint, besides root, you\n"
        "and the image's owner. They can change what your programs do. Left out: nobody.",
    ),
)


def parse(path: Path, text: str) -> Config:
    """Read the text of a `condainer.yml`.

    Args:
        path: of the file, for messages.
        text: what the file holds.

    Raises:
        ConfigError: If it is wrong: names the file, the line and the reason.
    """
    given = _plain_values(text)
    if given is None:
        given = _yaml_values(path, text)
    if "uuid" not in given:
        raise ConfigError(
            f"{path}: the key 'uuid' is missing",
            "take the file that came with the image, or run 'condainer init' in a new directory",
        )
    config = Config(**given)
    prefix = places.Places(str(config.mount_base_directory), config.uuid).prefix
    if len(os.fsencode(prefix)) > _PREFIX_MAX:
        raise ConfigError(
            f"{path}: the mountpoint {prefix} is longer than {_PREFIX_MAX} bytes",
            "choose a shorter mount_base_directory",
        )
    return config


def load(directory: Path) -> Config:
    """Read and check the `condainer.yml` of a project.

    Args:
        directory: the project directory.

    Raises:
        ConfigError: If there is none, or if it is wrong.
    """
    return parse(directory / CONFIG_NAME, read(directory))


def read(directory: Path) -> str:
    """Read the text of the `condainer.yml` of a project.

    Args:
        directory: the project directory.

    Raises:
        ConfigError: If there is none, or if it cannot be read.
    """
    path = directory / CONFIG_NAME
    if files.is_missing(path):
        raise ConfigError(
            f"no condainer project in {directory} (there is no {CONFIG_NAME})",
            "run 'condainer init' there, or name the project directory with -d DIR",
        )
    return files.read_text(path)


def template(uuid: str, *, chosen: dict[str, str] | None = None) -> str:
    """Make the text of a new `condainer.yml`, with every key explained.

    Args:
        uuid: the identity of the new project.
        chosen: values that differ from the default, by key; None for none.
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
    """A value as YAML: in quotes, unless YAML can read it in one way only."""
    if re.fullmatch(r"([A-Za-z0-9_./][A-Za-z0-9_./-]*)?", text) and text not in _NULLS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _plain_values(text: str) -> dict[str, Any] | None:
    """Read a file that is as plain as `init` writes it; a YAML parser takes long to import.

    Returns:
        The values; None if anything is less plain, or wrong. `_yaml_values` reads all of YAML, and
        says what is wrong.
    """
    keys = {key.name: key for key in KEYS}
    given: dict[str, Any] = {}
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
                given[name] = keys[name].read(value)
        except ValueError:
            return None
    return (
        given if values.is_level(given.get("compression"), given.get("compression_level")) else None
    )


def _yaml_values(path: Path, text: str) -> dict[str, Any]:
    """Read any YAML.

    Raises:
        ConfigError: If it is wrong: names the file, the line and the reason.
    """
    from condainer.project import yamlfile

    document = yamlfile.YamlFile(path, text)
    document.check_keys(key.name for key in KEYS)
    given: dict[str, Any] = {}
    for key in KEYS:
        node = document.value(key.name)
        if node is not None:
            given[key.name] = _read(document, node, key)
    algorithm, level = given.get("compression"), given.get("compression_level")
    if not values.is_level(algorithm, level):
        node = document.items["compression_level"][1]
        name = algorithm or "zstd"
        levels = values.COMPRESSORS[name]
        if levels is None:
            raise document.error(node, f"{name} has no levels", "remove the key compression_level")
        raise document.error(node, f"{name} has levels {levels[0]} to {levels[1]}")
    return given


def _read(document: yamlfile.YamlFile, node: yaml.Node, key: Key) -> object:
    text = document.line(node, f"'{key.name}'")
    try:
        return key.read(text)
    except ValueError as error:
        reason = str(error)
        if reason.startswith(("invalid literal", "could not convert")):
            reason = "must be a whole number" if key.read is int else "must be a number"
        raise document.error(node, f"{key.name}: '{text}' {reason}") from None


if {field.name for field in fields(Config)} != {key.name for key in KEYS}:  # pragma: no cover
    raise AssertionError("Config and KEYS name different keys")
