"""`status`: shows the project, its image, its mount, and who uses it."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from condainer.commands import console
from condainer.errors import CondainerError
from condainer.mounting import backends, live, target, use
from condainer.project import image
from condainer.project import project as project_module
from condainer.system import files, runtime, trust, users
from condainer.units import foreign, human

if TYPE_CHECKING:
    import argparse

    from condainer.project.project import Project

EXAMPLES = """\
  condainer status
  condainer status --json | jq -r .mount.state
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `status`.

    Args:
        parser: takes them.
    """
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Show the status of a project.

    Args:
        arguments: the parsed command line.

    Returns:
        The exit status.
    """
    found = gather(project_module.open_project(arguments.directory))
    console.write_found(found, _rendered, as_json=arguments.json)
    return 0


def gather(project: Project) -> dict[str, Any]:
    """Find out everything that `status` shows. Changes nothing.

    Args:
        project: whose image and mount.

    Returns:
        What JSON can hold; `condainer status --json` prints it.
    """
    return {
        "project": str(project.directory),
        "uuid": project.config.uuid,
        "mountpoint": str(project.prefix),
        "image": _image(project),
        "mount": _mount(project),
    }


def _rendered(status: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"project     {foreign(status['project'])}", *_image_lines(status["image"])]
    mount = status["mount"]
    lines.append(f"mountpoint  {foreign(status['mountpoint'])}")
    if mount["state"] == target.State.LIVE.value:
        stays = ", stays until 'condainer umount'" if mount["pinned"] else ""
        lines.append(f"mounted     with {foreign(mount['backend'])}{stays}")
        lines.append(f"used by     {_names(mount)}")
        if "problem" in mount:
            lines.append(f"problem     {foreign(mount['problem'])}")
    elif mount["state"] == target.State.DEAD.value:
        lines.append("mounted     no: its daemon has died; the next exec or mount repairs that")
    else:
        lines.append(f"mounted     {foreign(mount.get('problem') or 'no')}")
    for private in mount.get("private", ()):
        with_what = foreign(private.get("backend", "something"))
        lines.append(f"mounted     with {with_what} in a namespace, used by {_names(private)}")
    return "\n".join(lines)


def _names(mount: dict[str, Any]) -> str:
    users_ = (f"{foreign(user['command'])} ({user['pid']})" for user in mount["users"])
    return ", ".join(users_) or "nobody"


def _image(project: Project) -> dict[str, Any]:
    about: dict[str, Any] = {
        "path": str(project.image),
        "exists": not files.is_absent(project.image),
    }
    if not about["exists"]:
        return about
    try:
        about["bytes"] = project.image.stat().st_size
        superblock = image.read_superblock(project.image)
        about["compression"] = superblock.compression
        about["block_size"] = superblock.block_size
        about["files"] = superblock.inodes
        manifest = image.read_manifest(project.image)
        about["name"] = manifest.get("name")
        about["built"] = manifest.get("built")
        about["packages"] = len(manifest.get("packages", []))
        about["pip_packages"] = len(manifest.get("pip", []))
        about["tools"] = manifest.get("tools")
    except (CondainerError, OSError) as error:
        about["problem"] = str(error)
    return about


def _image_lines(about: dict[str, Any]) -> list[str]:
    if not about["exists"]:
        return [f"image       none yet ({foreign(about['path'])}); make it with 'condainer build'"]
    size = f"{human(about['bytes'])}" if "bytes" in about else "unreadable"
    lines = [f"image       {foreign(about['path'])} ({size})"]
    if "files" in about:
        packages = f", {about['packages']} packages" if "packages" in about else ""
        pip = f" and {about['pip_packages']} of pip" if about.get("pip_packages") else ""
        lines.append(f"holds       {about['files']:,} files{packages}{pip}, {about['compression']}")
    if about.get("built"):
        when, name = foreign(_moment(about["built"])), foreign(about["name"] or "")
        lines.append(f"built       {when} as '{name}'")
    if "problem" in about:
        lines.append(f"problem     {foreign(about['problem'])}")
    return lines


def _moment(text: str) -> str:
    """When an image was built, in local time; the text as it is if it is no time."""
    try:
        return f"{dt.datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return text


def _mount(project: Project) -> dict[str, Any]:
    situation = target.Situation(target.State.ABSENT, None)
    about: dict[str, Any] = {}
    private: list[Project] = []
    try:
        trust.check_base(project)
        private = use.private_mounts(project)
        target.check_unoccupied(project)
        situation = target.look(project)
        if others := users.claimants(project.prefix):
            about["problem"] = f"{others[0]} uses the mountpoint: 'build' has to wait"
    except CondainerError as error:
        about["problem"] = error.message
    about = {"state": situation.state.value, **about}
    if situation.mount is not None:
        about["backend"] = backends.name_of(situation.mount.kind)
        about["pinned"] = runtime.exists(project.pin)
        if _is_of_another_image(project):
            about["problem"] = "the mounted image is not this one, but a copy or an older one"
        about["users"] = _users(project)
    if private:
        about["private"] = [_private(each) for each in private]
    return about


def _private(project: Project) -> dict[str, Any]:
    """A mount in a namespace of its own."""
    record = live.read(project.places)
    about: dict[str, Any] = {"backend": record.backend} if record is not None else {}
    return {**about, "users": _users(project)}


def _users(project: Project) -> list[dict[str, Any]]:
    found = users.users_of(project.prefix, project.use_lock)
    return [{"pid": user.pid, "command": user.command} for user in found]


def _is_of_another_image(project: Project) -> bool:
    """Whether the manifests of the mount and the image differ; False if unknown."""
    try:
        path = project.prefix / image.MANIFEST
        mounted = files.read(path, within=project.prefix, most=image.MANIFEST_MAX)
        return mounted != image.read_inside(project.image, image.MANIFEST)
    except (CondainerError, OSError):
        return False
