"""What environment.yml means: its channels and specs reach each installer as conda has them."""

from __future__ import annotations

import functools
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from condainer.pipeline.installers import choice
from condainer.project import image
from condainer.project.config import Config
from tests import building
from tests.localchannel.package import Package, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support import Workshop

CONFIG = Config(uuid="123e4567-e89b-42d3-a456-426614174000")


@pytest.fixture(params=["rattler", "micromamba"])
def build(request: pytest.FixtureRequest, micromamba: Path) -> Callable[..., None]:
    """Builds a project with each installer in turn."""
    installer = "rattler" if request.param == "rattler" else str(micromamba)

    def run(workshop: Workshop) -> None:
        workshop.run("build", "-q", "--force", "--installer", installer)

    return run


def write(workshop: Workshop, text: str) -> None:
    (workshop.directory / "environment.yml").write_text(text)


def packages(workshop: Workshop) -> dict[str, dict[str, object]]:
    return {p["name"]: p for p in image.read_manifest(workshop.image)["packages"]}


@pytest.fixture
def small_channel(hard_channel: Path, tmp_path: Path) -> Path:
    """A channel of its own beside the project, with the older of two versions only."""
    channel = tmp_path / "small channel"
    (channel / "noarch").mkdir(parents=True)
    archive = next(hard_channel.glob("noarch/hard-text-1.0-*.conda"))
    shutil.copy(archive, channel / "noarch")
    for subdir in [path.parent.name for path in hard_channel.glob("*/repodata.json")]:
        document = json.loads((hard_channel / subdir / "repodata.json").read_bytes())
        document["packages"] = {}
        document["packages.conda"] = {
            name: record
            for name, record in document["packages.conda"].items()
            if subdir == "noarch" and name == archive.name
        }
        (channel / subdir).mkdir(exist_ok=True)
        (channel / subdir / "repodata.json").write_text(json.dumps(document))
    return channel


# Channels


def test_relative_path_counts_from_the_file(
    workshop: Workshop, hard_channel: Path, build: Callable[[Workshop], None], tmp_path: Path
) -> None:
    (tmp_path / "channel").symlink_to(hard_channel)
    (workshop.directory / "below").mkdir()
    workshop.configure(environment_yml="below/environment.yml")
    text = "channels: [../../channel, nodefaults]\ndependencies: [hard-text]\n"
    (workshop.directory / "below/environment.yml").write_text(text)
    build(workshop)
    assert packages(workshop)["hard-text"]["channel"] == hard_channel.as_uri()


def test_file_url(
    workshop: Workshop, hard_channel: Path, build: Callable[[Workshop], None]
) -> None:
    workshop.environment("hard-text", channel=hard_channel.as_uri())
    build(workshop)
    assert packages(workshop)["hard-text"]["version"] == "2.0"


def test_http_url(
    workshop: Workshop, hard_channel: Path, build: Callable[[Workshop], None]
) -> None:
    with building.served(hard_channel) as url:
        workshop.environment("hard-text", channel=f"{url}/")
        build(workshop)
        assert packages(workshop)["hard-text"]["channel"] == url


def test_space_in_the_path_of_a_channel(workshop: Workshop, small_channel: Path) -> None:
    workshop.environment("hard-text", channel=f"'{small_channel}'")
    workshop.run("build", "-q")
    assert packages(workshop)["hard-text"]["version"] == "1.0"
    workshop.run("build", "-q", "--force", "--locked")
    assert packages(workshop)["hard-text"]["version"] == "1.0"


def test_space_in_the_path_of_a_channel_is_too_much_for_micromamba(
    workshop: Workshop, small_channel: Path, micromamba: Path
) -> None:
    workshop.environment("hard-text", channel=f"'{small_channel}'")
    answer = workshop.run("build", "--installer", str(micromamba), status=1)
    assert "micromamba cannot read a channel whose path has a space" in answer.stderr
    assert "'--installer rattler'" in answer.stderr


def test_first_channel_goes_before_a_newer_version_in_the_second(
    workshop: Workshop, hard_channel: Path, small_channel: Path, build: Callable[[Workshop], None]
) -> None:
    first = small_channel.rename(small_channel.with_name("small"))
    channels = f"channels:\n  - {first}\n  - {hard_channel}\n  - nodefaults\n"
    write(workshop, channels + "dependencies: [hard-text]\n")
    build(workshop)
    assert packages(workshop)["hard-text"]["channel"] == first.as_uri()
    assert packages(workshop)["hard-text"]["version"] == "1.0"


def test_spec_that_names_its_channel(
    workshop: Workshop, hard_channel: Path, small_channel: Path, build: Callable[[Workshop], None]
) -> None:
    other = small_channel.rename(small_channel.with_name("small"))
    channels = f"channels:\n  - {hard_channel}\n  - {other}\n  - nodefaults\n"
    write(workshop, channels + f"dependencies: ['{other}::hard-text', hard-links]\n")
    build(workshop)
    assert packages(workshop)["hard-text"]["version"] == "1.0"
    assert packages(workshop)["hard-links"]["channel"] == hard_channel.as_uri()


def test_spec_may_name_a_channel_that_is_not_in_the_list(
    workshop: Workshop, hard_channel: Path, small_channel: Path
) -> None:
    other = small_channel.rename(small_channel.with_name("small"))
    channels = f"channels:\n  - {hard_channel}\n  - nodefaults\n"
    write(workshop, channels + "dependencies: ['../small::hard-text', hard-links]\n")
    workshop.run("build", "-q")
    assert packages(workshop)["hard-text"]["channel"] == other.as_uri()


@pytest.fixture
def configured(workshop: Workshop, hard_channel: Path, tmp_path: Path) -> Workshop:
    """A project whose user has told conda of a channel, in a home directory of its own."""
    workshop.variables["HOME"] = str(tmp_path)
    (tmp_path / ".condarc").write_text(f"channels: [{hard_channel}]\n")
    return workshop


def test_only_the_channels_listed_count(
    configured: Workshop, small_channel: Path, micromamba: Path
) -> None:
    listed = small_channel.rename(small_channel.with_name("small"))
    write(configured, f"channels: [{listed}]\ndependencies: [hard-links]\n")
    for installer in ("rattler", str(micromamba)):
        answer = configured.run("build", "--installer", installer, status=1)
        assert f"searched: {listed.as_uri()}\n" in answer.stderr


@pytest.mark.parametrize("channels", ["", "channels: []\n", "channels: [nodefaults]\n"])
def test_where_no_channel_is_listed_those_configured_count(
    configured: Workshop, hard_channel: Path, micromamba: Path, channels: str
) -> None:
    write(configured, f"{channels}dependencies: [hard-text]\n")
    configured.run("build", "-q", "--installer", str(micromamba))
    assert packages(configured)["hard-text"]["channel"] == hard_channel.as_uri()


# Specs


@pytest.mark.parametrize(
    ("spec", "version"),
    [
        ("hard-text", "2.0"),
        ("hard-text=1", "1.0"),
        ("hard-text=1.*", "1.0"),
        ("hard-text<2", "1.0"),
        ("hard-text <2", "1.0"),
        ("hard-text==1.0=0", "1.0"),
        ("hard-text>=1,<3", "2.0"),
        ("hard-text[version='1.*']", "1.0"),
    ],
)
def test_versions(
    workshop: Workshop,
    hard_channel: Path,
    build: Callable[[Workshop], None],
    spec: str,
    version: str,
) -> None:
    workshop.environment(f'"{spec}"', channel=hard_channel)
    build(workshop)
    assert packages(workshop)["hard-text"]["version"] == version


def test_spec_that_is_the_url_of_a_package(workshop: Workshop, hard_channel: Path) -> None:
    archive = next(hard_channel.glob("noarch/hard-text-1.0-*.conda"))
    workshop.environment(archive.as_uri(), channel=hard_channel)
    workshop.run("build", "-q")
    assert packages(workshop)["hard-text"]["version"] == "1.0"


def test_what_the_machine_is_said_to_have_reaches_the_solver(
    workshop: Workshop, tmp_path: Path, build: Callable[[Workshop], None]
) -> None:
    def recipe(tree: Path) -> Package:
        put(tree, "share/needs-cuda.txt", "x\n")
        return Package(name="needs-cuda", version="1.0", depends=("__cuda >=99",))

    workshop.environment("needs-cuda", channel=building.make_channel(tmp_path / "one", recipe))
    assert "__cuda" in workshop.run("build", status=1).stderr
    workshop.variables["CONDA_OVERRIDE_CUDA"] = "99.1"
    build(workshop)
    assert packages(workshop).keys() == {"needs-cuda"}


# The other keys


def test_name_is_shown_and_prefix_is_ignored(
    workshop: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    workshop.environment(
        "hard-text", channel=hard_channel, more=f"prefix: {tmp_path}/elsewhere/envs/test\n"
    )
    workshop.run("build", "-q")
    assert image.read_manifest(workshop.image)["name"] == "test"
    shown = workshop.run("exec", "sh", "-c", 'echo "$CONDA_DEFAULT_ENV $CONDA_PREFIX"')
    assert shown.stdout == f"test {workshop.prefix}\n"
    assert not (tmp_path / "elsewhere").exists()


# Which installer


def test_installers_are_chosen_in_their_order(
    monkeypatch: pytest.MonkeyPatch, micromamba: Path, tmp_path: Path
) -> None:
    second = shutil.copy(micromamba, tmp_path / "mamba")
    configured = functools.partial(Config, uuid=CONFIG.uuid)
    monkeypatch.delenv("CONDAINER_INSTALLER", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert choice.choose(CONFIG).description.startswith("rattler")
    assert choice.choose(configured(conda_exe="mamba")).description.startswith("rattler")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert choice.choose(CONFIG).description.startswith("mamba ")
    monkeypatch.setenv("PATH", f"{micromamba.parent}:{tmp_path}:/usr/bin:/bin")
    assert choice.choose(CONFIG).description.startswith("micromamba ")
    assert choice.choose(configured(conda_exe=str(second))).description.startswith("mamba ")
    monkeypatch.setenv("CONDAINER_INSTALLER", "rattler")
    assert choice.choose(configured(conda_exe="mamba")).description.startswith("rattler")
    assert choice.choose(CONFIG, str(micromamba)).description.startswith("micromamba ")


@pytest.mark.parametrize("command", [("build", "-n"), ("prereq",)])
def test_configured_name_that_is_not_found_is_named(
    workshop: Workshop, hard_channel: Path, command: tuple[str, ...]
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.configure(conda_exe="old-mamba")
    words = "conda_exe: 'old-mamba' was not found; taking the first installer there is"
    answer = workshop.run(*command, variables={"CONDAINER_INSTALLER": "", "PATH": "/usr/bin:/bin"})
    assert (answer.stdout + answer.stderr).count(words) == 1
    answer = workshop.run(*command)  # CONDAINER_INSTALLER goes before the key
    assert words not in answer.stdout + answer.stderr


def test_package_cache_is_where_the_project_says(
    workshop: Workshop, hard_channel: Path, build: Callable[[Workshop], None], tmp_path: Path
) -> None:
    workshop.configure(package_cache=tmp_path / "packages")
    workshop.environment("hard-text", channel=hard_channel)
    build(workshop)
    below = "hard-text-2.0-0/share/hard-text/version.txt"
    assert len(list((tmp_path / "packages").rglob(below))) == 1


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HOME", ".cache/rattler/cache/pkgs"),
        ("XDG_CACHE_HOME", "rattler/cache/pkgs"),
        ("RATTLER_CACHE_DIR", "pkgs"),
    ],
)
def test_package_cache_of_rattler_is_where_its_other_users_have_it(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, variable: str, below: str
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q", variables={variable: str(tmp_path / "cache")})
    assert (tmp_path / "cache" / below / "hard-text-2.0-0").is_dir()


# What mamba says


@pytest.mark.parametrize("linked", ["1", "[1]", '[{"name": "x"}]', '[{"name": ["x"]}]', '"x"'])
def test_an_answer_that_lists_no_packages_is_an_error(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, linked: str
) -> None:
    program = tmp_path / "micromamba"
    program.write_text(f'#!/bin/sh\necho \'{{"actions": {{"LINK": {linked}}}}}\'\n')
    program.chmod(0o755)
    workshop.environment("hard-text", channel=hard_channel)
    answer = workshop.run("build", "--installer", str(program), status=1)
    assert "micromamba lists something that is not a package: " in answer.stderr


def test_long_explanation_is_cut_at_its_end(workshop: Workshop, tmp_path: Path) -> None:
    talkative = tmp_path / "micromamba"
    talkative.write_text(
        "#!/bin/sh\necho 'error    libmamba Could not solve for environment specs' >&2\n"
        'for n in $(seq 70); do echo "    ├─ package-$n does not exist" >&2; done\n'
        "echo 'critical libmamba Could not solve for environment specs' >&2\nexit 1\n"
    )
    talkative.chmod(0o755)
    workshop.environment("package-1", channel=tmp_path)
    words = workshop.run("build", "--installer", str(talkative), status=1).stderr
    assert "micromamba found no solution:\n  Could not solve for environment specs\n" in words
    assert "├─ package-1 does" in words
    assert "├─ package-70 does" not in words
    assert "  … and 46 more lines\n" in words


# Nothing, and less than usual


def test_an_environment_of_nothing(workshop: Workshop, build: Callable[[Workshop], None]) -> None:
    write(workshop, "name: nothing\ncategory: main\n")
    build(workshop)
    assert packages(workshop) == {}


def test_what_is_passed_over_is_said_once(workshop: Workshop) -> None:
    write(workshop, "name: nothing\ncategory: main\ndependencies: []\n")
    answer = workshop.run("build", "--installer", "rattler")
    assert answer.stderr.count("environment.yml, line 2: the key 'category' is ignored") == 1
