"""What `.condarc` says counts with the built-in installer as it does with conda."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

import pytest
import rattler

from condainer.project import image
from tests import building
from tests.localchannel.package import Package, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.localchannel.package import Recipe
    from tests.support import Workshop


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
