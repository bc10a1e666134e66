"""environment.yml: what conda accepts is accepted, and everything else is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from condainer.errors import ConfigError
from condainer.project import environment
from condainer.project.environment import Environment

PATH = Path("/project/environment.yml")


def parse(text: str) -> Environment:
    return environment.parse(PATH, text)


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value


def test_everything() -> None:
    text = (
        "name: mine\n"
        "channels: [conda-forge, https://example.org/ch/, nodefaults]\n"
        "dependencies:\n  - python=3.10\n  - numpy >=1.2,<2\n  - bioconda::samtools\n"
        "  - pip:\n    - requests[socks]>=2\n    - -r more.txt\n"
        "variables:\n  A: one\n  B: two words\n"
        "prefix: /somewhere/else\n"
    )
    found = parse(text)
    assert found == Environment(
        path=PATH,
        text=text,
        name="mine",
        channels=("conda-forge", "https://example.org/ch"),
        specs=("python=3.10", "numpy >=1.2,<2", "bioconda::samtools"),
        pip=("requests[socks]>=2", "-r more.txt"),
        variables=(("A", "one"), ("B", "two words")),
    )


def test_the_example_of_init_is_one() -> None:
    found = parse(environment.EXAMPLE)
    assert found.specs == ("python=3.12", "numpy", "pandas")
    assert found.channels == ("conda-forge",)


def test_nodefaults_is_no_channel() -> None:
    assert parse("channels: [nodefaults]\ndependencies: [python]\n").channels == ()


@pytest.mark.parametrize(
    "spec", ["python=3.10", "python==3.10", "1.10", "x 1.0 py_0", "[name=x]", "*", "a::b", "_x=1e3"]
)
def test_specs_stay_as_they_stand(spec: str) -> None:
    assert parse(f"dependencies:\n  - {spec!r}\n").specs == (spec,)


def test_names_that_look_like_other_types() -> None:
    found = parse("name: 3.10\ndependencies: [python]\nvariables: {A: 3.10, B: 010, C: 1e3}\n")
    assert found.name == "3.10"
    assert found.variables == (("A", "3.10"), ("B", "010"), ("C", "1e3"))


def test_variables_of_all_scalar_types() -> None:
    found = parse(
        "dependencies: [python]\n"
        "variables:\n  T: true\n  I: 0x1F\n  D: 2020-01-01\n  N:\n  E: ''\n  S: 'a: b'\n"
        "  M: |\n    one\n    two\n  U: größe\n"
    )
    assert dict(found.variables) == {
        "T": "true",
        "I": "0x1F",
        "D": "2020-01-01",
        "N": "",
        "E": "",
        "S": "a: b",
        "M": "one\ntwo\n",
        "U": "größe",
    }


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ("conda-forge", "conda-forge"),
        ("conda-forge/label/x", "conda-forge/label/x"),
        ("https://example.org/a b", "https://example.org/a b"),
        ("file:///srv/ch", "file:///srv/ch"),
        ("/srv/my channel", "file:///srv/my%20channel"),
        ("./ch", "file:///project/ch"),
        ("../ch", "file:///ch"),
        ("..", "file:///"),
        (".hidden", ".hidden"),
        ("~/ch", "file:///home/me/ch"),
        ("/größe", "file:///gr%C3%B6%C3%9Fe"),
    ],
)
def test_channels(channel: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(f"channels: ['{channel}']\ndependencies: [x]\n").channels == (expected,)


def test_the_channel_of_a_spec_may_be_a_path() -> None:
    assert parse("dependencies: ['./ch::python=3']\n").specs == ("file:///project/ch::python=3",)


def test_a_channel_in_a_directory_that_is_not_utf8() -> None:
    path = Path(os.fsdecode(b"/caf\xe9/environment.yml"))
    found = environment.parse(path, "channels: [./ch]\ndependencies: [x]\n")
    assert found.channels == ("file:///caf%E9/ch",)


def test_links_in_a_circle_are_no_channel(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    try:
        found = environment.parse(tmp_path / "e.yml", "channels: [./a]\ndependencies: [x]\n")
    except ConfigError as error:
        assert "./a" in error.message  # noqa: PT017  (newer versions of Python let it be)
    else:
        assert found.channels == (f"file://{tmp_path}/a",)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("dependencies: python\n", 1, "'dependencies' must be a list"),
        ("dependencies:\n  python: 3\n", 2, "'dependencies' must be a list"),
        ("dependencies:\n  - [a, b]\n", 2, "a dependency must be one plain value"),
        ("dependencies:\n  - '=3'\n", 2, "'=3' is not a package specification"),
        ("dependencies:\n  - pip: requests\n", 2, "'pip:' must be a list"),
        ("dependencies:\n  - pip:\n    - {a: b}\n", 3, "an item of 'pip:' must be one plain value"),
        ("dependencies:\n  - pip:\n    -\n", 3, "'pip:' has an empty item"),
        ("dependencies: [x]\nchannels: conda-forge\n", 2, "'channels' must be a list"),
        ("dependencies: [x]\nchannels: ['']\n", 2, "'channels:' has an empty item"),
        ("dependencies: [x]\nchannels: ['~nosuchuser/ch']\n", 2, "is not a path"),
        ('dependencies: [x]\nchannels: ["/a\\0b"]\n', 2, "is not a path"),
        ("dependencies: [x]\nvariables: [A=1]\n", 2, "'variables' must be a mapping"),
        ("dependencies: [x]\nvariables: {A: [1]}\n", 2, "variable 'A' must be one plain value"),
        ('dependencies: [x]\nvariables: {A: "\\0"}\n', 2, "holds a NUL byte"),
        ("dependencies: [x]\nvariables: {A: 1, A: 2}\n", 2, "key 'A' appears a second time"),
        ("dependencies: [x]\nname: [a]\n", 2, "'name' must be one plain value"),
        ('dependencies: [x]\nname: "a\\0b"\n', 2, "'name'"),
        ('dependencies: [x]\nname: "a\\nb"\n', 2, "'name'"),
        ("dependencies:\n\t- python\n", 2, "not valid YAML"),
        ("dependencies:\n  - sel(amiga): x\n", 2, "'sel(amiga):' is not one of sel(linux)"),
        ("dependencies:\n  - sel(linux): [x]\n", 2, "a dependency must be one plain value"),
        ("a: &a {<<: [1]}\ndependencies: [x]\nvariables: *a\n", 1, "'<<:' merges must be"),
        ("name: x\ndependencies: [\n", 3, "not valid YAML"),
        ("- python\n", 1, "the file must be a mapping"),
    ],
)
def test_a_wrong_file(text: str, line: int, words: str) -> None:
    error = refusal(text)
    assert error.message.startswith(f"{PATH}, line {line}: "), error.message
    assert words in error.message


# What conda and mamba pass over, with a word


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("dependencies: [x]\ncategory: main\n", 2, "'category' is ignored"),
        ("dependencies: [x]\nplatforms: [linux-64]\n", 2, "'platforms' is ignored"),
        ("dependencies: [x]\ndescription: |\n  one\n  two\n", 2, "'description' is ignored"),
        ("dependencies: [x]\ndepends: [y]\n", 2, "did you mean 'dependencies'?"),
        ("chanels: [y]\ndependencies: [x]\n", 1, "did you mean 'channels'?"),
        ("dependencies:\n  - x\n  - npm: [y]\n", 3, "'npm:' is not a kind of dependency"),
        ("dependencies:\n  - x\n  - python: 3.10\n", 3, "write a version as '- name=1.2'"),
        ("dependencies: [x]\nvariables: {A-B: 1}\n", 2, "'A-B' is ignored"),
        ("dependencies: [x]\nchannels:\n  - https://h/$NONE/c\n", 3, "'$NONE' stays as it is"),
        ("dependencies: [x]\nchannels: ['https://${NONE}@h/c']\n", 2, "'${NONE}' stays as it is"),
    ],
)
def test_what_is_passed_over_is_said(text: str, line: int, words: str) -> None:
    found = parse(text)
    assert found.specs == ("x",)
    (warning,) = found.warnings
    assert warning.startswith(f"{PATH}, line {line}: "), warning
    assert words in warning


def test_a_key_that_is_like_none_gives_no_guess() -> None:
    (warning,) = parse("dependencies: [x]\ncategory: main\n").warnings
    assert "did you mean" not in warning


@pytest.mark.parametrize(
    "text", ["", "name: x\n", "dependencies:\n", "dependencies: []\n", "# only a comment\n"]
)
def test_nothing_to_install(text: str) -> None:
    found = parse(text)
    assert found.specs == ()
    assert found.warnings == (f"{PATH}: nothing is listed under 'dependencies'",)


@pytest.mark.parametrize(
    "text",
    [
        "dependencies:\n  - x\n  -\n  - y\n",
        "dependencies: [x, null, y]\nprefix: [a]\n",
        "\ufeffdependencies:\n  - x\n  - y\n",
        "dependencies:\r\n  - x\r\n  - y\r\n",
        "dependencies:\t\n-\tx\t# one\n\t\n- y\t\n",
        "dependencies:\n  - sel(linux): x\n  - sel(win): z\n  - sel(osx): [z]\n  - sel(unix): y\n",
        "both: &both [x, y]\ndependencies: *both\n",
        "%YAML 1.2\n---\ndependencies: [x, y]\n...\n",
        "name:\nchannels:\nvariables:\nprefix:\ndependencies: [x, y]\n",
    ],
)
def test_the_same_file_in_other_words(text: str) -> None:
    assert parse(text).specs == ("x", "y")


def test_a_file_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "e.yml").write_text("dependencies: [größe]\n", encoding="utf-16")
    assert environment.load(tmp_path / "e.yml").specs == ("größe",)


def test_keys_that_are_merged() -> None:
    found = parse(
        "base: &base {A: 1, B: 2}\nmore: &more {<<: *base, B: 3, C: 4}\ndependencies: [x]\n"
        "variables:\n  C: 5\n  <<: [*more, *base]\n"
    )
    assert dict(found.variables) == {"A": "1", "B": "3", "C": "5"}


def test_merging_ends() -> None:
    lines = ["a0: &a0 {A: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 200)]
    found = parse("\n".join([*lines, "dependencies: [x]", "variables: *a199"]))
    assert found.variables == (("A", "1"),)
    assert parse("a: &a {<<: *a, A: 1}\ndependencies: [x]\nvariables: *a\n").variables


@pytest.mark.parametrize("empty", ["", " []", " null", " ~"])
def test_an_empty_list_for_pip_asks_for_pip(empty: str) -> None:
    assert parse(f"dependencies:\n  - x\n  - pip:{empty}\n").specs == ("x", "pip")
    pip = f"dependencies:\n  - conda-forge::pip >=20\n  - pip:{empty}\n"
    assert parse(pip).specs == ("conda-forge::pip >=20",)


def test_two_lists_for_pip() -> None:
    found = parse("dependencies:\n  - pip: [a]\n  - x\n  - pip: [b, -e ./c]\n")
    assert found.pip == ("a", "b", "-e ./c")


def test_variables_in_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("TOP", "/srv")
    found = parse(
        "channels: ['https://h/t/$TOKEN/c', 'https://u:${TOKEN}@h/d', '$TOP/e']\n"
        "dependencies: [x]\n"
    )
    assert found.channels == ("https://h/t/secret/c", "https://u:secret@h/d", "file:///srv/e")
    assert not found.warnings


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("x =1.2 =0", "x =1.2=0"),
        ("x  =  1.2  =  0", "x =1.2=0"),
        ("x= 1.2 = py_0", "x=1.2=py_0"),
        ("x ==1.2 =0", "x ==1.2=0"),
        ("x 1.2 =0", "x 1.2=0"),
        ("x >= 1 , < 2 =0", "x >=1,<2=0"),
        ("x >= 1 , < 2", "x >=1,<2"),
        ("x=", "x"),
        ("x >=1  # not the oldest", "x >=1"),
        ("c::x =1 =0", "c::x =1=0"),
        ("x[version='>= 1', build = 0]", "x[version='>= 1', build = 0]"),
        ("https://h/c::x = 1", "https://h/c::x =1"),
        ("./x-1-0.conda", "file:///project/x-1-0.conda"),
        ("x-1-0.tar.bz2", "file:///project/x-1-0.tar.bz2"),
        ("~/x-1-0.conda", "file:///home/me/x-1-0.conda"),
        ("/a b/x-1-0.conda", "file:///a%20b/x-1-0.conda"),
        ("https://h/c/linux-64/x-1-0.conda#0a", "https://h/c/linux-64/x-1-0.conda#0a"),
    ],
)
def test_specs_as_conda_reads_them(
    spec: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (found,) = parse(f'dependencies:\n  - "{spec}"\n').specs
    assert found == expected


def test_a_file_of_nearly_that_name(tmp_path: Path) -> None:
    (tmp_path / "environment.yaml").touch()
    with pytest.raises(ConfigError, match=r"there is no .*\.yml, but environment\.yaml"):
        environment.load(tmp_path / "environment.yml")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*environment\.yml"):
        environment.load(tmp_path / "environment.yml")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        environment.load(tmp_path)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "e.yml").write_bytes(b"name: gr\xf6\xdfe\n")
    with pytest.raises(ConfigError, match=r"not a text file in UTF-8 \(byte 8\)"):
        environment.load(tmp_path / "e.yml")


YAML_PIECES = st.sampled_from(
    [
        *("dependencies:", "channels:", "variables:", "name:", "pip:", "prefix:", "python=3.10"),
        *("- ", ": ", "\n", "\n  ", "\n    ", "[", "]", "{", "}", "&a", "*a", "!!int ", "~", "/"),
        *("|", ">", "'", '"', "#", "? ", "<<", "\t", "\0", "---\n", "..", "::", "größe", "\\0"),
    ]
)


@given(st.one_of(st.text(), st.lists(YAML_PIECES).map("".join)))
@example("dependencies: &a [*a]")
@example("dependencies: [~x/y::z]")
@example("channels: ['~nosuchuser']\ndependencies: [x]")
@example("dependencies: " + "[" * 3000)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse(text)
    except ConfigError:
        return


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_nesting_beyond_reason_is_refused(tmp_path: Path, opening: str) -> None:
    with pytest.raises(ConfigError, match="nested more than"):
        environment.parse(tmp_path / "environment.yml", "dependencies:\n  " + opening * 100_000)
