"""What a build says when it cannot be done, and that nothing of what was there is touched."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import building, localchannel, support
from tests.localchannel.package import Package
from tests.support import compressing, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support import Workshop

pytestmark = pytest.mark.slow

OLD_IMAGE = b"an image that was here before"
IMPATIENT = """\
from condainer import cli
from condainer.pipeline.installers import patience

patience.SILENCE = 2
cli.entry()
"""


@pytest.fixture(params=["rattler", "micromamba"])
def installer(request: pytest.FixtureRequest, micromamba: Path) -> str:
    """Each installer in turn, as `--installer` names it."""
    return "rattler" if request.param == "rattler" else str(micromamba)


@pytest.fixture
def failing(workshop: Workshop) -> Workshop:
    """A project with an old image that has to outlive whatever fails."""
    workshop.image.write_bytes(OLD_IMAGE)
    return workshop


def fail(workshop: Workshop, *arguments: str) -> str:
    """Build and fail; gives what is said. Nothing but the log may have changed."""
    before = building.picture(workshop.directory)
    answer = workshop.run("build", "--force", *arguments, status=1)
    after = building.picture(workshop.directory)
    for seen in (before, after):
        seen.pop(workshop.build_log.name, None)
        seen.pop(".")
    assert after == before
    assert workshop.left_over() == []
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    assert "bug" not in answer.stderr
    return answer.stderr


def refusal(workshop: Workshop, *arguments: str) -> str:
    """What keeps a project from being built; a dry run says the same, and neither does anything."""
    said = []
    for dry_run in ((), ("--dry-run",)):
        before = building.picture(workshop.directory), building.picture(workshop.base)
        answer = workshop.run("build", *arguments, *dry_run, status=1)
        assert (building.picture(workshop.directory), building.picture(workshop.base)) == before
        said.append(answer.stderr.partition("condainer: error: ")[2])
    assert said[0] == said[1]
    return said[0]


# What was given


def test_image_that_is_there_is_left_alone(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    words = refusal(workshop)
    assert f"the image {workshop.image} exists already" in words
    assert "--force" in words


def test_lock_file_that_is_missing(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    assert f"there is no lock file {workshop.lock_file}" in refusal(workshop, "--locked")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\ndependencies:\n  - a: [\n", "environment.yml, line 4: not valid YAML"),
        ("dependencies: a\n", "line 1: 'dependencies' must be a list"),
        ("dependencies:\n  - pip:\n    - a\n  - sel(x): b\n", "line 4: 'sel(x):'"),
    ],
)
def test_broken_environment_yml_is_named_with_its_line(
    failing: Workshop, text: str, words: str
) -> None:
    (failing.directory / "environment.yml").write_text(text)
    assert words in fail(failing)


def odd_pipe(path: Path) -> None:
    os.mkfifo(path)


def odd_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def odd_size(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (odd_pipe, "it is not a regular file"),
        (odd_device, "it is not a regular file"),
        (odd_size, "it is larger than "),
    ],
)
@pytest.mark.parametrize(
    "name", ["condainer.yml", "environment.yml", "requirements.txt", "UUID.lock.txt"]
)
def test_files_that_are_none_are_named(
    failing: Workshop, hard_channel: Path, name: str, odd: Callable[[Path], None], words: str
) -> None:
    failing.environment("hard-text", channel=hard_channel)
    path = failing.directory / name.replace("UUID", failing.uuid)
    path.unlink(missing_ok=True)
    odd(path)
    locked = ["--locked"] if path == failing.lock_file else []
    answer = failing.run("build", "--force", *locked, status=1)
    assert f"{path}: {words}" in answer.stderr
    assert failing.image.read_bytes() == OLD_IMAGE


@pytest.mark.parametrize("odd", [odd_pipe, odd_device])
def test_what_is_not_written_by_build_is_not_replaced(
    failing: Workshop, hard_channel: Path, odd: Callable[[Path], None]
) -> None:
    failing.environment("hard-text", channel=hard_channel)
    odd(failing.directory / "activate")
    said = failing.run("build", "--force", status=1).stderr
    assert f"{failing.directory}/activate: it is not a regular file" in said


def test_files_behind_links_are_read(failing: Workshop, hard_channel: Path, tmp_path: Path) -> None:
    failing.environment("hard-text", channel=hard_channel)
    for name in ("condainer.yml", "environment.yml"):
        (failing.directory / name).rename(tmp_path / name)
        (failing.directory / name).symlink_to(tmp_path / name)
    failing.run("build", "-q", "--force")


def test_missing_environment_yml_is_named(failing: Workshop) -> None:
    assert f"there is no {failing.directory}/environment.yml" in fail(failing)


def test_requirements_that_are_a_directory(failing: Workshop, hard_channel: Path) -> None:
    failing.environment("hard-text", channel=hard_channel)
    failing.configure(requirements_txt=".")
    words = fail(failing)
    assert f"{failing.directory} is a directory" in words
    assert "key requirements_txt" in words
    assert "solve" not in words


def test_specs_that_exclude_each_other(
    failing: Workshop, hard_channel: Path, installer: str
) -> None:
    failing.environment("conflict-a", "conflict-b", channel=hard_channel)
    words = fail(failing, "--installer", installer)
    assert "found no solution" in words
    assert "conflict-a" in words
    assert "conflict-b" in words
    assert "hard-text" in words


def test_package_that_is_not_there(failing: Workshop, hard_channel: Path, installer: str) -> None:
    failing.environment("hard-nowhere", channel=hard_channel)
    words = fail(failing, "--installer", installer)
    assert "hard-nowhere" in words
    assert len(words.splitlines()) < 15


def test_specification_that_cannot_be_read(
    failing: Workshop, hard_channel: Path, installer: str
) -> None:
    failing.environment('"hard-text=>=1"', channel=hard_channel)
    assert ">=1" in fail(failing, "--installer", installer)


def test_package_that_is_not_there_has_a_neighbour(failing: Workshop, hard_channel: Path) -> None:
    failing.environment("hard-txt", channel=hard_channel)
    words = fail(failing)
    assert f"searched: {hard_channel.as_uri()}\n" in words
    assert "did you mean hard-text" in words


def test_channel_that_is_not_there(failing: Workshop, tmp_path: Path, installer: str) -> None:
    failing.environment("hard-text", channel=tmp_path / "no-channel")
    words = fail(failing, "--installer", installer)
    assert f"cannot read the channel {tmp_path.as_uri()}/no-channel:\n" in words
    assert "solution" not in words
    assert "mamba clean" not in words


def test_which_of_several_channels_is_not_there(
    failing: Workshop, hard_channel: Path, tmp_path: Path, installer: str
) -> None:
    (failing.directory / "environment.yml").write_text(
        f"channels: [{hard_channel}, {tmp_path}/no-channel]\ndependencies: [hard-text]\n"
    )
    words = fail(failing, "--installer", installer)
    assert f"cannot read the channel {tmp_path.as_uri()}/no-channel:\n" in words


def test_channel_that_the_server_does_not_have(failing: Workshop, tmp_path: Path) -> None:
    with building.served(tmp_path) as url:
        failing.environment("hard-text", channel=f"{url}/no-channel")
        words = fail(failing)
    assert f"cannot read the channel {url}/no-channel:\n" in words
    assert "404" in words
    assert "solution" not in words


def test_server_that_is_not_there(failing: Workshop, tmp_path: Path) -> None:
    with building.served(tmp_path) as url:
        pass
    failing.environment("hard-text", channel=f"{url}/channel")
    words = fail(failing)
    assert f"cannot read the channel {url}/channel:\n" in words
    assert "Connection refused" in words


def test_server_that_has_no_time_at_first(workshop: Workshop, hard_channel: Path) -> None:
    with building.served_reluctantly(2, hard_channel) as (url, refused):
        workshop.environment("hard-text", channel=url)
        workshop.run("build", "-q")
    assert len(refused) == 2


@pytest.mark.parametrize("withheld", [".json.zst", ".conda"])
def test_server_that_goes_silent(
    failing: Workshop, hard_channel: Path, monkeypatch: pytest.MonkeyPatch, withheld: str
) -> None:
    monkeypatch.setattr(support, "CONDAINER", (sys.executable, "-c", IMPATIENT))
    failing.configure(package_cache=failing.directory.parent / "packages")
    with building.served_but(withheld, hard_channel) as (url, asked):
        failing.environment("hard-text", channel=url)
        words = fail(failing)
        assert asked.is_set()
    package = "/noarch/hard-text-2.0-0.conda" if withheld == ".conda" else ""
    assert f"{url}{package} has sent nothing for 2 s" in words


@pytest.mark.parametrize("how", ["file", "http"])
def test_package_that_is_not_what_its_channel_says(
    failing: Workshop, installer: str, how: str
) -> None:
    channel = localchannel.ensure("badchecksum")
    with contextlib.ExitStack() as stack:
        url = channel.as_uri() if how == "file" else stack.enter_context(building.served(channel))
        failing.environment("hard-badchecksum", channel=url)
        words = fail(failing, "--installer", installer)
    assert "hard-badchecksum" in words
    assert re.search("sha256|md5|hash mismatch", words, re.IGNORECASE)
    assert "Summary" not in words


def test_installer_that_is_not_there(failing: Workshop, hard_channel: Path) -> None:
    failing.environment("hard-text", channel=hard_channel)
    assert "'/nowhere/micromamba' was not found" in fail(
        failing, "--installer", "/nowhere/micromamba"
    )


# What fails on the way


def test_post_link_script_that_fails(failing: Workshop, hard_channel: Path, installer: str) -> None:
    failing.environment("hard-post-link-fails", channel=hard_channel)
    words = fail(failing, "--installer", installer)
    assert "hard-post-link-fails" in words
    assert f"the log is {failing.build_log}" in words
    assert "hard-post-link-fails: cannot go on" in failing.build_log.read_text()


def test_last_lines_of_a_failing_post_link_script(failing: Workshop, hard_channel: Path) -> None:
    failing.environment("hard-post-link-fails", channel=hard_channel)
    words = fail(failing)
    assert "failed (exit status 3)" in words
    assert "hard-post-link-fails: cannot go on" in words


@pytest.mark.parametrize("how", [[], ["--no-overlap"]])
def test_mksquashfs_that_is_killed(failing: Workshop, how: list[str]) -> None:
    failing.configure(compression="xz")
    failing.environment("hard-big", channel=localchannel.ensure("big"))
    build = failing.start("build", "--force", *how)
    wait_for(lambda: compressing(failing))
    for pid in compressing(failing):
        os.kill(pid, signal.SIGKILL)
    _, words = build.communicate()
    assert build.returncode == 1
    assert "mksquashfs failed (killed by SIGKILL)" in words
    assert failing.image.read_bytes() == OLD_IMAGE
    assert building.parts(failing) == []


ODD_RECORD = "echo '{}' > conda-meta/x.json"
ODD_VARIABLES = "mkdir -p etc/conda/env_vars.d; echo '{}' > etc/conda/env_vars.d/x.json"
NO_VARIABLES = "env_vars.d/x.json does not hold variables: a JSON object with names and texts"
NO_RECORD = "conda-meta/x.json is not the record of a package: "


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("mkfifo conda-meta/x.json", "conda-meta/x.json: it is not a regular file"),
        ("mkdir conda-meta/x.json", "conda-meta/x.json: Is a directory"),
        ("ln -s /dev/zero conda-meta/x.json", "conda-meta/x.json is a symbolic link"),
        ("truncate -s 1G conda-meta/x.json", "conda-meta/x.json: it is larger than 64.0 MB"),
        ("mkdir d; mv conda-meta/* d; rmdir conda-meta; ln -s d conda-meta", "is a symbolic link"),
        (ODD_RECORD.format(""), NO_RECORD),
        (ODD_RECORD.format("[]"), f"{NO_RECORD}it holds no JSON object"),
        ("printf '%0100000d' 0 | tr 0 [ > conda-meta/x.json", NO_RECORD),
        (ODD_RECORD.format('{"name": "x"}'), f"{NO_RECORD}name, version or build is missing"),
        (ODD_RECORD.format('{"name": ["x"]}'), f"{NO_RECORD}'name' is not text"),
        (ODD_RECORD.format('{"size": "x"}'), f"{NO_RECORD}'size' is not a whole number"),
        (ODD_RECORD.format('{"files": 5}'), f"{NO_RECORD}'files' is not a list of paths"),
        (ODD_RECORD.format('{"files": [[]]}'), f"{NO_RECORD}'files' is not a list of paths"),
        ("mkfifo .messages.txt", ".messages.txt: it is not a regular file"),
        ("truncate -s 1G .messages.txt", ".messages.txt: it is larger than 64.0 MB"),
        ("mkdir -p etc/conda/env_vars.d; mkfifo etc/conda/env_vars.d/x.json", "x.json does not"),
        ("mkdir -p etc/conda/activate.d; mkfifo etc/conda/activate.d/x.sh", "x.sh is not a reg"),
        (ODD_VARIABLES.format('{"A=B": "x"}'), NO_VARIABLES),
        (ODD_VARIABLES.format('{"": "x"}'), NO_VARIABLES),
        (ODD_VARIABLES.format('{"A B": "x"}'), NO_VARIABLES),
        (ODD_VARIABLES.format('{"A": "x\\u0000"}'), NO_VARIABLES),
        (ODD_VARIABLES.format('{"A": 1}'), NO_VARIABLES),
        (ODD_VARIABLES.format("[]"), NO_VARIABLES),
        (ODD_VARIABLES.format("{"), "env_vars.d/x.json does not hold variables: "),
        ("mkdir .condainer; touch .condainer/x", "has put something at"),
        ("mkdir d; ln -s d .condainer", "has put something at"),
        ("touch .condainer", "has put something at"),
        (
            "m=lib/python3/site-packages/x.dist-info; mkdir -p $m; mkfifo $m/METADATA",
            "/METADATA: it",
        ),
    ],
)
def test_odd_things_in_the_prefix_are_named(
    failing: Workshop, tmp_path: Path, script: str, words: str
) -> None:
    """Pipes nobody writes to, what never ends, and what is no record of a package."""
    channel = building.make_channel(tmp_path / "channel", building.odd_package(script))
    failing.environment("odd", channel=channel)
    assert words in fail(failing)


@pytest.mark.parametrize(
    ("link", "target"), [("conda-meta", "."), ("conda-meta/other.json", "other.json")]
)
def test_links_of_a_package_do_not_lead_out_of_the_prefix(
    failing: Workshop, tmp_path: Path, link: str, target: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/other.json").write_text("{}")
    (tmp_path / "outside/other.json").chmod(0o600)

    def recipe(tree: Path) -> Package:
        (tree / link).parent.mkdir(exist_ok=True)
        (tree / link).symlink_to(tmp_path / "outside" / target)
        return Package(name="odd", version="1.0")

    failing.environment("odd", channel=building.make_channel(tmp_path / "channel", recipe))
    before = building.picture(tmp_path / "outside")
    assert link in fail(failing)
    assert building.picture(tmp_path / "outside") == before


# What is in the way


@pytest.fixture
def ready_to_build(failing: Workshop, hard_channel: Path) -> Workshop:
    failing.environment("hard-text", channel=hard_channel)
    return failing


@contextlib.contextmanager
def untouched(path: Path) -> Iterator[None]:
    """Whatever happens, a path and all below it stay as they are; it is taken away afterwards."""
    before = building.picture(path)
    yield
    assert building.picture(path) == before
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def test_prefix_with_something_else_in_it(ready_to_build: Workshop) -> None:
    prefix = ready_to_build.prefix
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix / "conda-meta/history").write_text("of another program\n")
    with untouched(prefix):
        answer = ready_to_build.run("build", "--force", status=1)
        assert f"{prefix} is in use by something else" in answer.stderr


def test_prefix_that_is_a_file(ready_to_build: Workshop) -> None:
    ready_to_build.prefix.write_text("something\n")
    with untouched(ready_to_build.prefix):
        answer = ready_to_build.run("build", "--force", status=1)
        assert f"{ready_to_build.prefix} is not a directory" in answer.stderr


def test_prefix_that_is_a_link(ready_to_build: Workshop, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("something\n")
    ready_to_build.prefix.symlink_to(tmp_path / "elsewhere")
    with untouched(tmp_path / "elsewhere"), untouched(ready_to_build.prefix):
        answer = ready_to_build.run("build", "--force", status=1)
        assert f"{ready_to_build.prefix} is a symbolic link" in answer.stderr


def test_prefix_that_belongs_to_somebody_else(ready_to_build: Workshop) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    ready_to_build.prefix.mkdir()
    os.chown(ready_to_build.prefix, building.NOBODY, building.NOBODY)
    with untouched(ready_to_build.prefix):
        answer = ready_to_build.run("build", "--force", status=1)
        assert f"{ready_to_build.prefix} belongs to user {building.NOBODY}" in answer.stderr


@building.needs_root
@pytest.mark.parametrize("where", ["", "below"])
def test_prefix_with_something_mounted(workshop: Workshop, hard_channel: Path, where: str) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    place = workshop.prefix / where
    place.mkdir(parents=True)
    with building.mounted_tmpfs(place, "size=1m"):
        (place / "file").write_text("something\n")
        before = building.picture(workshop.prefix)
        for force in ((), ("--force",)):
            answer = workshop.run("build", *force, status=1)
            assert f"{place} is mounted (tmpfs)" in answer.stderr
            assert building.picture(workshop.prefix) == before
    shutil.rmtree(workshop.prefix)


def test_mounted_image_in_use_is_left_alone(workshop: Workshop, hard_channel: Path) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    workshop.run("build", "-q")
    workshop.run("mount", "-q")
    words = refusal(workshop, "--force")
    assert f"{workshop.prefix} is mounted" in words
    assert "umount" in words
    assert workshop.is_mounted()
    workshop.run("umount", "-q")


def test_prefix_that_is_an_empty_directory_is_taken(ready_to_build: Workshop) -> None:
    ready_to_build.prefix.mkdir()
    ready_to_build.run("build", "--force", "-q")


@pytest.mark.parametrize("kind", ["directory", "pipe", "link to a directory"])
@pytest.mark.parametrize("name", ["image", "lock_file", "build_log", "activate", "deactivate"])
def test_something_else_where_a_file_is_written(
    workshop: Workshop, hard_channel: Path, tmp_path: Path, name: str, kind: str
) -> None:
    workshop.environment("hard-text", channel=hard_channel)
    path = getattr(workshop, name, workshop.directory / name)
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path)
    before = building.picture(workshop.directory)
    answer = workshop.run("build", "--force", "--locked", status=1)
    what = "not a regular file" if kind == "pipe" else "a directory"
    assert f"{path}: it is {what}, and build writes a file there" in answer.stderr
    assert building.picture(workshop.directory) == before


def test_image_that_is_a_link_into_nowhere(ready_to_build: Workshop, tmp_path: Path) -> None:
    ready_to_build.image.unlink()
    ready_to_build.image.symlink_to(tmp_path / "nowhere/image")
    missing = tmp_path / "nowhere"
    words = fail(ready_to_build)
    words_expected = (
        f"is a link to {missing}/image, and you cannot write to the directory {missing}"
    )
    assert words_expected in words
    assert "solve" not in words


def test_file_behind_a_link_outlives_a_failing_build(
    failing: Workshop, hard_channel: Path, tmp_path: Path
) -> None:
    failing.image.rename(tmp_path / "image")
    failing.image.symlink_to(tmp_path / "image")
    failing.environment("hard-post-link-fails", channel=hard_channel)
    fail(failing)
    assert (tmp_path / "image").read_bytes() == OLD_IMAGE


# The mount base directory


def build_below(workshop: Workshop, base: Path) -> str:
    """Build with another mount base directory and fail; gives what is said."""
    workshop.configure(mount_base_directory=base)
    words = refusal(workshop, "--force")
    assert "solve" not in words
    return words


def test_base_directory_that_is_missing(ready_to_build: Workshop, tmp_path: Path) -> None:
    words = build_below(ready_to_build, tmp_path / "nowhere")
    assert f"mount_base_directory {tmp_path}/nowhere is missing" in words


@pytest.mark.parametrize("options", [(), ("-n",)])
def test_base_directory_where_everybody_may_replace_what_is_there(
    ready_to_build: Workshop, tmp_path: Path, options: tuple[str, ...]
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    base.chmod(0o777)
    ready_to_build.configure(mount_base_directory=base)
    words = ready_to_build.run(*options, "build", "--force", status=1).stderr
    assert f"{base} is writable for all and has no sticky bit" in words
    assert f"chmod +t {base}" in words
    assert list(base.iterdir()) == []
    base.chmod(0o1777)
    ready_to_build.run(*options, "build", "--force")


@pytest.mark.parametrize(
    ("options", "words"),
    [("size=1m,noexec", "is mounted noexec"), ("size=1m,ro", "is read-only")],
)
def test_base_directory_where_nothing_can_be_installed(
    ready_to_build: Workshop, tmp_path: Path, options: str, words: str
) -> None:
    with building.mounted_tmpfs(tmp_path / "base", options) as base:
        assert f"mount_base_directory {base} {words}" in build_below(ready_to_build, base)
        assert list(base.iterdir()) == []


@pytest.fixture
def open_project(hard_channel: Path, home: Path) -> Iterator[Workshop]:
    """A project that other users can see."""
    with (
        building.public_directory() as directory,
        building.new_workshop(directory / "project", home) as made,
    ):
        shutil.copytree(hard_channel, directory / "channel")
        made.environment("hard-text", channel="../channel")
        made.directory.chmod(0o777)
        made.base.chmod(0o755)
        yield made


def test_base_directory_that_is_not_writable(open_project: Workshop) -> None:
    answer = building.run_as_nobody(open_project, "build")
    assert answer.returncode == 1
    assert f"you cannot write to mount_base_directory {open_project.base}" in answer.stderr


def test_project_directory_that_is_not_writable(open_project: Workshop) -> None:
    open_project.directory.chmod(0o755)
    open_project.base.chmod(0o1777)
    answer = building.run_as_nobody(open_project, "build")
    assert answer.returncode == 1
    assert f"you cannot write to the project directory {open_project.directory}" in answer.stderr


@building.needs_root
def test_application_with_a_file_that_cannot_be_read_is_not_built_without_it(
    open_project: Workshop,
) -> None:
    open_project.configure(non_conda_application="true")
    open_project.prefix.mkdir()
    open_project.prefix.chmod(0o777)
    (open_project.prefix / "secret").write_text("for root only\n")
    (open_project.prefix / "secret").chmod(0o600)
    open_project.base.chmod(0o1777)
    answer = building.run_as_nobody(open_project, "build")
    assert answer.returncode == 1
    assert "secret" in answer.stderr
    assert not open_project.image.exists()
    assert building.parts(open_project) == []
    shutil.rmtree(open_project.prefix)


def test_ordinary_user_without_a_home_directory_can_build(
    open_project: Workshop, hard_channel: Path
) -> None:
    open_project.base.chmod(0o1777)
    open_project.configure(package_cache=open_project.directory / "packages")
    with building.served(hard_channel) as url:
        open_project.environment("hard-text", channel=url)
        answer = building.run_as_nobody(open_project, "build", "-q")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    assert open_project.image.stat().st_uid == building.NOBODY


def test_package_cache_that_cannot_be_made_is_named(open_project: Workshop) -> None:
    open_project.base.chmod(0o1777)
    answer = building.run_as_nobody(open_project, "build")
    assert answer.returncode == 1
    assert "/nonexistent/.cache/rattler" in answer.stderr


def test_programs_of_another_build_are_not_in_the_way(
    ready_to_build: Workshop, tmp_path: Path
) -> None:
    """A second build of the same project waits for nothing: it says who builds already."""
    with building.served_but(".json", tmp_path) as (url, asked):
        ready_to_build.environment("hard-text", channel=url)
        first = ready_to_build.start("build", "--force")
        asked.wait()
        words = refusal(ready_to_build, "--force")
        who = f"(process {first.pid})"
        assert f"another build of this project is running on this machine {who}\n" in words
        first.send_signal(signal.SIGTERM)
        first.communicate()
        assert first.returncode == 128 + signal.SIGTERM


def test_which_build_of_several_failed(
    ready_to_build: Workshop, tmp_path: Path, home: Path, hard_channel: Path
) -> None:
    with building.new_workshop(tmp_path / "second", home) as second:
        second.environment("hard-nowhere", channel=hard_channel)
        answer = ready_to_build.run(
            *("build", "--force", "-j", "1"),
            str(ready_to_build.directory),
            str(second.directory),
            status=1,
        )
        assert f"condainer: {second.directory}:\n" in answer.stderr
        assert "hard-nowhere" in answer.stderr
        assert ready_to_build.image.read_bytes() != OLD_IMAGE
        assert not second.image.exists()
        assert (
            subprocess.run(["unsquashfs", "-s", ready_to_build.image], check=False).returncode == 0
        )
