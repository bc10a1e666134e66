"""condainer.yml and `init`: what is accepted, what is refused, and how that is said."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from condainer.errors import ConfigError
from condainer.project import config
from condainer.project.config import KEYS, Config
from condainer.project.places import Places

PATH = Path("/p/condainer.yml")
UUID = "123e4567-e89b-42d3-a456-426614174000"


def parse(text: str) -> Config:
    return config.parse(PATH, text)


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value


# What is accepted


def test_defaults() -> None:
    assert parse(f"uuid: {UUID}\n") == Config(uuid=UUID)


def test_every_key_of_older_projects() -> None:
    found = parse(
        "mount_base_directory: /scratch/mounts\n"
        f"uuid: {UUID}\n"
        "environment_yml: env.yaml\n"
        "requirements_txt: reqs.txt\n"
        "conda_exe: mamba\n"
        "installer_url: https://example.org/Mambaforge.sh\n"
        "user_env_name: mine\n"
        "non_conda_application: true\n"
    )
    assert found == Config(
        uuid=UUID,
        mount_base_directory=Path("/scratch/mounts"),
        environment_yml="env.yaml",
        requirements_txt="reqs.txt",
        conda_exe="mamba",
        installer_url="https://example.org/Mambaforge.sh",
        user_env_name="mine",
        non_conda_application=True,
    )


def test_empty_values_mean_the_default() -> None:
    text = "".join(f"{key.name}:\n" for key in KEYS if key.name != "uuid")
    assert parse(f"uuid: {UUID}\n{text}") == Config(uuid=UUID)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("user_env_name: 3.10", "user_env_name", "3.10"),
        ("user_env_name: 'no'", "user_env_name", "no"),
        ("non_conda_application: Yes", "non_conda_application", True),
        ("non_conda_application: off", "non_conda_application", False),
        ("block_size: 1M", "block_size", 1 << 20),
        ("block_size: 4096", "block_size", 4096),
        ("unmount_after: 0", "unmount_after", 0.0),
        ("unmount_after: 1.5", "unmount_after", 1.5),
        ("compression_level: 22", "compression_level", 22),
        ("mount_base_directory: /tmp/", "mount_base_directory", Path("/tmp")),
        ("mount_base_directory: //tmp", "mount_base_directory", Path("/tmp")),
        ("environment_yml: 'ümläut env.yml'", "environment_yml", "ümläut env.yml"),
    ],
)
def test_values(line: str, field: str, value: object) -> None:
    assert getattr(parse(f"uuid: {UUID}\n{line}\n"), field) == value


@pytest.mark.parametrize(
    "key", ["package_cache", "conda_exe", "environment_yml", "requirements_txt"]
)
def test_a_path_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert getattr(parse(f"uuid: {UUID}\n{key}: ~/x\n"), key) == "/home/me/x"


def test_an_upper_case_uuid_is_the_same_uuid() -> None:
    assert parse(f"uuid: {UUID.upper()}\n").uuid == UUID


def test_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "condainer.yml").write_bytes(b"\xef\xbb\xbfuuid: " + UUID.encode())
    assert config.load(tmp_path).uuid == UUID


def test_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "condainer.yml").write_bytes(f"uuid: {UUID}\r\nblock_size: 1M\r\n".encode())
    assert config.load(tmp_path) == Config(uuid=UUID, block_size=1 << 20)


# What is refused


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("enviroment_yml", "environment_yml"),
        ("mount_base_dir", "mount_base_directory"),
        ("UUID", None),
        ("compresion", "compression"),
    ],
)
def test_an_unknown_key(key: str, suggestion: str | None) -> None:
    error = refusal(f"uuid: {UUID}\n\n{key}: x\n")
    assert error.message == f"{PATH}, line 3: unknown key '{key}'"
    if suggestion:
        assert error.hint == f"did you mean '{suggestion}'?"
    else:
        assert "uuid" in error.hint


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mount_base_directory: tmp", "must be an absolute path"),
        ("mount_base_directory: /a b", "must be free of spaces"),
        ("mount_base_directory: /a/../b", "must be free of spaces"),
        ("mount_base_directory: [/tmp]", "must be one plain value"),
        ("uuid2: x", "unknown key"),
        ("non_conda_application: maybe", "must be true or false"),
        ("non_conda_application: 1", "must be true or false"),
        ("compression: bzip2", "must be one of zstd, gzip"),
        ("compression_level: high", "must be a whole number"),
        ("compression_level: 3.5", "must be a whole number"),
        ("compression_level: 23", "zstd has levels 1 to 22"),
        ("compression_level: 0", "zstd has levels 1 to 22"),
        ("block_size: 3K", "must be a power of two from 4K to 1M"),
        ("block_size: 2M", "must be a power of two from 4K to 1M"),
        ("block_size: -4096", "must be a power of two from 4K to 1M"),
        ("unmount_after: soon", "must be a number"),
        ("unmount_after: -1", "from 0 to 86400"),
        ("unmount_after: nan", "from 0 to 86400"),
        ("unmount_after: inf", "from 0 to 86400"),
        ("environment_yml: ''", "must name a file"),
        ("environment_yml: {a: b}", "must be one plain value"),
        ('environment_yml: "a\\0b"', "without control characters"),
        ('mount_base_directory: "/tmp/\\0"', "without control characters"),
        ('user_env_name: "a\\nb"', "without control characters"),
        ('package_cache: "\\x1b"', "without control characters"),
        *(
            (f"{key}: ~nosuchuser/x", f"{key}: '~nosuchuser/x' begins with the home directory")
            for key in ("package_cache", "conda_exe", "environment_yml", "requirements_txt")
        ),
        ("mount_base_directory: ~/x", "must be an absolute path"),
        (f"uuid: {UUID}", "appears a second time"),
    ],
)
def test_a_wrong_value(line: str, words: str) -> None:
    error = refusal(f"# a comment\nuuid: {UUID}\n{line}\n")
    assert error.message.startswith(f"{PATH}, line 3: ")
    assert words in error.message


def test_levels_belong_to_their_algorithm() -> None:
    error = refusal(f"uuid: {UUID}\ncompression: gzip\ncompression_level: 10\n")
    assert error.message == f"{PATH}, line 3: gzip has levels 1 to 9"
    error = refusal(f"uuid: {UUID}\ncompression: lz4\ncompression_level: 1\n")
    assert error.message == f"{PATH}, line 3: lz4 has no levels"


@pytest.mark.parametrize(
    "value",
    [
        "../..",
        "/etc",
        f"{UUID}/..",
        f"x{UUID}",
        f"{UUID}x",
        f'"{UUID}\\n"',
        "1",
        "''",
        "x" * 36,
        UUID.replace("-", ""),
    ],
)
def test_a_uuid_that_is_none(value: str) -> None:
    error = refusal(f"uuid: {value}\n")
    assert error.message.startswith(f"{PATH}, line 1: ")


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "uuid:\n", "uuid: ~\n", "{}", "block_size: 4K"]
)
def test_a_missing_uuid(text: str) -> None:
    assert "'uuid' is missing" in refusal(text).message


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "uuid: 1: 2",
        "\tuuid: x",
        "- uuid",
        "uuid",
        "a: 'b",
        "? [a]\n: b",
        "a: *b",
        "%YAML 9",
        "---\n---\n",
        "a: \x07",
        "[" * 5000,
        "{a: " * 5000,
    ],
)
def test_what_is_not_a_yaml_mapping(text: str) -> None:
    assert str(PATH) in refusal(text).message


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "condainer.yml").write_bytes(b"uuid: \xff\n")
    with pytest.raises(ConfigError, match=r"condainer.yml: not a text file in UTF-8 \(byte 6\)"):
        config.load(tmp_path)


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "condainer.yml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read .*condainer.yml: Is a directory"):
        config.load(tmp_path)


def test_no_project(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no condainer project in") as caught:
        config.load(tmp_path)
    assert "condainer init" in caught.value.hint


def test_a_project_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no condainer project in"):
        config.load(tmp_path / "file")


def test_a_prefix_that_is_too_long() -> None:
    rest = len("/condainer-") + len(UUID)
    longest = "/" + "x" * (254 - rest)
    assert parse(f"uuid: {UUID}\nmount_base_directory: {longest}\n")
    error = refusal(f"uuid: {UUID}\nmount_base_directory: {longest}x\n")
    assert "longer than 255 bytes" in error.message


def test_bytes_count_for_the_length_of_a_prefix() -> None:
    error = refusal(f"uuid: {UUID}\nmount_base_directory: /{'ü' * 110}\n")
    assert "longer than 255" in error.message


@given(st.text())
@example("uuid: &a *a")
@example("uuid: " + "9" * 5000)
@example(f"uuid: {UUID}\ncompression_level: {'9' * 5000}")
@example(f"uuid: {UUID}\nblock_size: {'9' * 5000}")
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse(text)
    except ConfigError as error:
        assert str(PATH) in error.message  # noqa: PT017  (some are accepted)


@given(st.sampled_from([key.name for key in KEYS]), st.text())
def test_any_value_is_read_or_refused(name: str, value: str) -> None:
    text = yaml.safe_dump({"uuid": UUID, name: value}, allow_unicode=True)
    try:
        found = parse(text)
    except ConfigError as error:
        assert str(PATH) in error.message  # noqa: PT017  (some are accepted)
    else:
        assert len(Places(str(found.mount_base_directory), found.uuid).prefix) <= 255


def test_the_new_file_explains_every_key() -> None:
    paragraphs = config.template(UUID).split("\n\n")[1:]
    names = []
    for paragraph in paragraphs:
        *comment, line = paragraph.strip().splitlines()
        assert comment
        assert all(text.startswith("# ") for text in comment)
        names.append(re.sub(r"^#?(\w+):.*", r"\1", line))
    assert names == [field.name for field in KEYS]
    assert set(names) == {field.name for field in fields(Config)}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_each_key_of_the_new_file_can_be_switched_on(key: config.Key) -> None:
    text = re.sub(rf"(?m)^#({key.name}:)", r"\1", config.template(UUID))
    assert re.search(rf"(?m)^{key.name}:", text)
    expected = key.read(key.example) if key.example else getattr(Config(uuid=UUID), key.name)
    assert getattr(parse(text), key.name) == expected


def test_what_the_new_file_shows_as_default_is_the_default() -> None:
    shows_an_example = {"uuid", "conda_exe", "user_env_name", "package_cache", "trusted_users"}
    effective = {"compression": "zstd", "compression_level": 6, "channel_priority": "flexible"}
    for key in KEYS:
        if key.name not in shows_an_example and key.example:
            default = effective.get(key.name, getattr(Config(uuid=UUID), key.name))
            assert key.read(key.example) == default, key.name


PLAIN = st.sampled_from(
    [
        *("", "# a comment", "uuid: 123E4567-e89b-42d3-a456-426614174000", "uuid:", "uuid: null"),
        *("conda_exe: micromamba", "conda_exe: ~/bin/mamba", "conda_exe: ~", "conda_exe: 'x y'"),
        *("unmount_after: 3", "unmount_after: 3.5 # short", "unmount_after: no", "block_size: 64K"),
        *("compression: gzip", "compression_level: 9", "compression_level: 22", "user_env_name: 1"),
        *(
            "non_conda_application: yes",
            "user_env_name:  3.10 ",
            "  indented",
            "---",
            "nonsense: 1",
        ),
        *("mount_base_directory: /scratch/me/", "package_cache: a:b", "# bell \a", "\t", "{}"),
    ]
)


@given(st.lists(PLAIN, max_size=6))
def test_plain_lines_mean_what_they_mean_in_yaml(lines: list[str]) -> None:
    """The mark of a document is YAML, too, but not as plain as what is read without a parser."""
    text = "\n".join(["uuid: 123e4567-e89b-42d3-a456-426614174000", *lines])
    assert what_comes_of(text) == what_comes_of(f"---\n{text}")


def what_comes_of(text: str) -> Config | str:
    try:
        return config.parse(PATH, text)
    except ConfigError as error:
        return re.sub(r", (line|position) \d+", "", error.message)
