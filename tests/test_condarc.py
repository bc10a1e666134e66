"""What `.condarc` says counts with the built-in installer as it does with conda."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
import rattler

from condainer.errors import ConfigError
from condainer.pipeline.installers import channels, condarc, network
from condainer.project import environment, image
from tests import building
from tests.localchannel.package import Package, put

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.localchannel.package import Recipe
    from tests.support import Workshop

ANACONDA = "https://repo.anaconda.com/pkgs"
ALIAS = "https://conda.anaconda.org"


def load(directory: Path, text: str = "", **variables: str) -> condarc.Condarc:
    """What is read where there is one file, and some variables."""
    path = directory / "a.condarc"
    path.write_text(text)
    return condarc.load({"CONDARC": str(path), **variables})


@pytest.fixture(autouse=True)
def _home_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


# Names


@pytest.mark.parametrize(
    ("text", "name", "urls"),
    [
        ("", "defaults", [f"{ANACONDA}/main", f"{ANACONDA}/r"]),
        ("", "pkgs/main", [f"{ANACONDA}/main"]),
        ("", "pkgs/msys2", [f"{ANACONDA}/msys2"]),
        ("", "pkgs/free", [f"{ANACONDA}/free"]),
        ("", "pkgs/pro", [f"{ANACONDA}/pro"]),
        ("", "main", [f"{ALIAS}/main"]),
        ("", "conda-forge/label/dev", [f"{ALIAS}/conda-forge/label/dev"]),
        ("", "https://h/t/x/ch/linux-64", ["https://h/t/x/ch"]),
        ("channel_alias: https://h/conda/", "bioconda", ["https://h/conda/bioconda"]),
        ("channel_alias: https://h", "defaults", [f"{ANACONDA}/main", f"{ANACONDA}/r"]),
        ("default_channels: [https://h/m, own]", "defaults", ["https://h/m", f"{ALIAS}/own"]),
        ("default_channels: [https://h/pkgs/main]", "pkgs/main", ["https://h/pkgs/main"]),
        ("default_channels: [https://h/a]", "pkgs/main", [f"{ALIAS}/pkgs/main"]),
        ("default_channels: [https://h/a]", "pkgs/r", [f"{ALIAS}/pkgs/r"]),
        ("custom_channels: {lab: https://h/conda}", "lab", ["https://h/conda/lab"]),
        ("custom_channels: {lab: https://h/conda}", "lab/dev", ["https://h/conda/lab/dev"]),
        ("custom_channels: {lab: https://h}", "pkgs/pro", [f"{ALIAS}/pkgs/pro"]),
        ("custom_channels: {lab: https://h}", "labs", [f"{ALIAS}/labs"]),
        ("custom_multichannels: {two: [a, https://h/b]}", "two", [f"{ALIAS}/a", "https://h/b"]),
    ],
)
def test_names_of_channels(tmp_path: Path, text: str, name: str, urls: list[str]) -> None:
    assert list(channels.find(name, load(tmp_path, text)).urls) == urls


@pytest.mark.parametrize(
    ("spec", "placed"),
    [
        ("x=1", "x=1"),
        ("defaults::x", "defaults::x"),
        ("defaults/noarch::x>1", "defaults/noarch::x>1"),
        ("pkgs/main/linux-64::x", f"{ANACONDA}/main/linux-64::x"),
        ("x[channel=pkgs/r]", f"{ANACONDA}/r::x"),
        ("x[channel='lab', version='1.*']", "https://h/lab::x[version='1.*']"),
        ("x=1[build=0, channel=lab/dev]", "https://h/lab/dev::x=1[build=0]"),
        ("https://u:p@h/c::x", "https://u:p@h/c::x"),
    ],
)
def test_names_in_specs(tmp_path: Path, spec: str, placed: str) -> None:
    configured = load(tmp_path, "custom_channels: {lab: https://h}")
    assert channels.placed(spec, configured)[0] == placed


# Reading


def test_files_add_up_and_a_final_key_stays(tmp_path: Path) -> None:
    (tmp_path / ".condarc").write_text(
        "channels: [a]\nchannel_alias: https://first  #!final\nssl_verify: false\n"
    )
    configured = load(tmp_path, "channels: [b]\nchannel_alias: https://second\n")
    assert configured.channels == ("b", "a")
    assert configured.channel_alias == "https://first"
    assert not configured.ssl_verify


def test_variables_go_before_files(tmp_path: Path) -> None:
    text = "channel_priority: strict\nchannels: [a]\n"
    variables = {"CONDA_CHANNEL_PRIORITY": "disabled", "CONDA_CHANNELS": "b,c"}
    configured = load(tmp_path, text, **variables)
    assert configured.channel_priority == "disabled"
    assert configured.channels == ("b", "c", "a")


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("", "flexible"),
        ("channel_priority: false", "disabled"),
        ("channel_priority: True", "flexible"),
    ],
)
def test_priority(tmp_path: Path, text: str, priority: str) -> None:
    assert load(tmp_path, text).channel_priority == priority


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("channel_priority: hard", "line 1: channel_priority: 'hard' is not one of flexible"),
        ("channel_alias: host/path", "line 1: channel_alias: 'host/path' is not a URL"),
        ("channels: {a: b}", "line 1: 'channels' must be a list"),
        ("ssl_verify: /no/such/file", "ssl_verify names /no/such/file, which has no certificates"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


# Building


def package(
    version: str,
    name: str = "thing",
    depends: tuple[str, ...] = (),
    noarch: Literal["generic"] | None = "generic",
) -> Recipe:
    def recipe(tree: Path) -> Package:
        put(tree, f"share/{name}", version)
        return Package(name=name, version=version, depends=depends, noarch=noarch)

    return recipe


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two channels: an older `thing`, and a newer one with a `user` that needs it."""
    first = building.make_channel(tmp_path / "channels/first", package("1.0"))
    user = package("1.0", "user", ("thing >=2",))
    second = building.make_channel(tmp_path / "channels/second", package("2.0"), user)
    return first, second


@pytest.fixture
def own(workshop: Workshop, tmp_path: Path) -> Workshop:
    """A project whose user has a home and a package cache of its own."""
    workshop.variables["HOME"] = str(tmp_path)
    workshop.variables["MAMBA_ROOT_PREFIX"] = str(tmp_path / "mamba")
    return workshop


def write(workshop: Workshop, text: str) -> None:
    (workshop.directory / "environment.yml").write_text(text)


def versions(workshop: Workshop) -> dict[str, str]:
    return {p["name"]: p["version"] for p in image.read_manifest(workshop.image)["packages"]}


@pytest.fixture(params=["rattler", "micromamba"])
def build(request: pytest.FixtureRequest, micromamba: Path) -> Callable[..., None]:
    """Builds with each installer in turn."""
    installer = "rattler" if request.param == "rattler" else str(micromamba)

    def run(workshop: Workshop, *more: str, status: int = 0) -> None:
        workshop.run("build", "-q", "--force", "--installer", installer, *more, status=status)

    return run


@pytest.mark.parametrize(
    ("priority", "thing"),
    [("", "1.0"), ("flexible", "1.0"), ("strict", "1.0"), ("disabled", "2.0")],
)
def test_key_for_the_priority(
    own: Workshop,
    two: tuple[Path, Path],
    build: Callable[..., None],
    priority: str,
    thing: str,
) -> None:
    own.configure(channel_priority=priority)
    write(own, f"channels: [{two[0]}, {two[1]}]\ndependencies: [thing]\n")
    build(own)
    assert versions(own)["thing"] == thing
    write(own, f"channels: [{two[0]}, {two[1]}]\ndependencies: [user]\n")
    build(own, status=1 if priority == "strict" else 0)


def test_priority_of_condarc_counts_and_the_key_goes_before_it(
    own: Workshop, two: tuple[Path, Path], build: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / ".condarc").write_text("channel_priority: strict\n")
    write(own, f"channels: [{two[0]}, {two[1]}]\ndependencies: [user]\n")
    build(own, status=1)
    own.configure(channel_priority="flexible")
    build(own)


def test_a_priority_that_there_is_not_is_refused(own: Workshop) -> None:
    own.configure(channel_priority="hard")
    said = own.run("build", status=1).stderr
    assert "line 4: channel_priority: 'hard' must be one of flexible, strict, disabled" in said


@pytest.mark.parametrize(
    "text",
    [
        "channels: [lab]\ndependencies: [thing]\n",
        "channels: [{other}]\ndependencies: ['lab::thing']\n",
        "channels: [{other}]\ndependencies: ['lab/noarch::thing']\n",
        "channels: [{other}]\ndependencies: ['thing[channel=lab]']\n",
        "dependencies: ['defaults::thing']\n",
        "channels: [{other}]\ndependencies: ['both::thing=1']\n",
        "channels: [{other}]\ndependencies: ['thing[channel=both, version=1.0]']\n",
    ],
)
def test_names_are_mapped_wherever_a_channel_is_named(
    own: Workshop, two: tuple[Path, Path], tmp_path: Path, text: str
) -> None:
    lab = building.make_channel(tmp_path / "served/lab", package("1.0"))
    with building.served(lab.parent) as url:
        (tmp_path / ".condarc").write_text(
            f"channels: [lab]\ncustom_channels: {{lab: {url}}}\ndefault_channels: [{url}/lab]\n"
            f"custom_multichannels: {{both: [{two[1].as_uri()}, {url}/lab]}}\n"
        )
        write(own, text.format(other=two[1]))
        own.run("build", "-q")
        assert versions(own) == {"thing": "1.0"}
        own.run("build", "-q", "--force", "--locked")
        assert versions(own) == {"thing": "1.0"}


def test_alias_with_a_password_stays_secret(
    own: Workshop, two: tuple[Path, Path], tmp_path: Path
) -> None:
    with building.served_to("me:secret@", two[0].parent) as (url, bare):
        (tmp_path / ".condarc").write_text(f"channel_alias: {url}\n")
        write(own, "channels: [first]\ndependencies: [thing]\n")
        own.run("build", "-q")
        own.run("build", "-q", "--force", "--locked")
        assert f"{bare}/first" in own.lock_file.read_text()
    for path in (own.lock_file, own.build_log):
        assert "secret" not in path.read_text()


# The way there


@pytest.mark.parametrize("token", ["", "/t/abc"])
@pytest.mark.parametrize("variable", ["condarc", "REQUESTS_CA_BUNDLE", "off"])
def test_certificates(
    own: Workshop, two: tuple[Path, Path], tmp_path: Path, variable: str, token: str
) -> None:
    certificate = tmp_path / "certificate.pem"
    with building.served_with_tls(token, two[0].parent, certificate) as url:
        write(own, f"channels: ['{url}{token}/first']\ndependencies: [thing]\n")
        own.run("build", "-q", status=1)
        if variable == "REQUESTS_CA_BUNDLE":
            own.variables[variable] = str(certificate)
        else:
            verify = "false" if variable == "off" else certificate
            (tmp_path / ".condarc").write_text(f"ssl_verify: {verify}\n")
        own.run("build", "-q")
    assert versions(own) == {"thing": "1.0"}


@pytest.mark.parametrize("token", ["", "/t/abc"])
@pytest.mark.parametrize("key", ["http", "all", ""])
def test_proxy(own: Workshop, two: tuple[Path, Path], tmp_path: Path, key: str, token: str) -> None:
    with building.served_as_proxy(token, two[0].parent) as (url, seen):
        own.variables.pop("NO_PROXY", None)
        proxy = url.replace("://", "://me:secret@")
        if key:
            (tmp_path / ".condarc").write_text(f"proxy_servers: {{{key}: '{proxy}'}}\n")
        else:
            own.variables["http_proxy"] = proxy
        write(own, f"channels: ['http://far.invalid{token}/first']\ndependencies: [thing]\n")
        own.run("build", "-q")
    assert versions(own) == {"thing": "1.0"}
    assert set(seen) == {"Basic bWU6c2VjcmV0"}
    assert "secret" not in own.build_log.read_text()


@pytest.mark.parametrize("place", ["http://far.invalid", "all://far.invalid"])
def test_proxy_for_one_host(
    own: Workshop, two: tuple[Path, Path], tmp_path: Path, place: str
) -> None:
    """It goes before one for all; nobody listens there."""
    with building.served_as_proxy("", two[0].parent) as (url, seen):
        own.variables.pop("NO_PROXY", None)
        (tmp_path / ".condarc").write_text(
            f"proxy_servers: {{'{place}': '{url}', https: 'x:1', all: 'http://127.0.0.1:9'}}\n"
        )
        write(own, "channels: ['http://far.invalid/first']\ndependencies: [thing]\n")
        own.run("build", "-q")
        assert versions(own) == {"thing": "1.0"}
        assert seen


@pytest.mark.parametrize(
    ("text", "variables", "url", "proxy"),
    [
        ("{https: one, 'https://h': two}", {}, "https://h:8/x", "http://two"),
        ("{https: one, 'https://h': two}", {}, "https://i/x", "http://one"),
        (
            "{https: one, 'https://h': two}",
            {"HTTPS_PROXY": "http://e"},
            "https://h/x",
            "http://two",
        ),
        ("{https: one}", {"HTTPS_PROXY": "http://e"}, "https://h/x", "http://e"),
        ("{https: one}", {"ALL_PROXY": "http://e"}, "https://h/x", "http://one"),
        ("{all: one}", {"HTTPS_PROXY": "http://e"}, "https://h/x", "http://e"),
        ("{https: one, 'https://h': ''}", {}, "https://h/x", ""),
        ("{https: one, 'https://h': null}", {}, "https://h/x", "http://one"),
        ("{https: one, 'https://h': two}", {"NO_PROXY": "h"}, "https://u:p@h:8/x", ""),
        ("{all: one, 'all://h': two}", {}, "http://h/x", "http://two"),
    ],
)
def test_which_proxy_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    variables: dict[str, str],
    url: str,
    proxy: str,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    proxies = network.proxies_of(load(tmp_path, f"proxy_servers: {text}\n"))
    assert network.proxy_for(url, proxies) == proxy


@pytest.mark.parametrize(
    ("listed", "version"), [("noarch", "1.0"), ("{own}", "2.0"), ("", "2.0"), ("osx-64", "1.0")]
)
def test_part_of_a_channel(own: Workshop, tmp_path: Path, listed: str, version: str) -> None:
    """`CHANNEL/SUBDIR` has that subdirectory and noarch, as with conda."""
    subdir = str(rattler.Subdir.current())
    channel = building.make_channel(tmp_path / "parts", package("1.0"), package("2.0", noarch=None))
    part = listed.format(own=subdir)
    write(own, f"channels: ['{channel}/{part}']\ndependencies: [thing]\n")
    own.run("build", "-q")
    assert versions(own) == {"thing": version}


def test_channel_in_brackets_may_be_a_path(own: Workshop, two: tuple[Path, Path]) -> None:
    building.make_channel(own.directory / "lo cal", package("3.0"))
    for spec in ("thing[channel='./lo cal']", 'thing[version=3.0, channel="./lo cal"]'):
        write(own, f"channels: ['{two[0]}']\ndependencies: [{json.dumps(spec)}]\n")
        own.run("build", "-q", "--force")
        assert versions(own) == {"thing": "3.0"}


@pytest.mark.parametrize("channel", ["./local", "'./local'", "../base/local"])
def test_channel_in_brackets_counts_from_environment_yml(channel: str) -> None:
    text = f"dependencies: [{json.dumps(f'thing[version=1, channel={channel}]')}]\n"
    parsed = environment.parse(Path("/base/environment.yml"), text)
    assert parsed.specs == ("thing[version=1, channel='file:///base/local']",)
