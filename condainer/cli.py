"""The command line: parses it, runs one command, and is the one place that turns errors into words.

A command's modules are imported only when it runs: `exec` is called by thousands of ranks at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

import condainer
from condainer.errors import CondainerError, InterruptedBySignalError, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from condainer.project import Project

_WRONG_USAGE = 2
_EXEC_FAILED = 125
_NO_DESCRIPTOR = -1

_EXEC_USAGE = "condainer [options] exec [-h] [--] CMD [ARG ...]"

_DESCRIPTION = "Conda environments as single compressed files, mounted where they were built for."
_EPILOG = """\
examples:
  condainer init                      make a project here; then edit environment.yml
  condainer build                     environment.yml -> one compressed image
  condainer exec -- python script.py  run a program from it
  source ./activate                   or enter it, as with conda activate

A command's own help: condainer COMMAND --help
"""


def entry(failure: BaseException | None = None) -> NoReturn:
    """Run the command of this process, and end it.

    Args:
        failure: of the `exec` that this process was to become, to be told.

    Does not go through the interpreter's own end: the installer that comes with condainer has
    threads that may still be at work then, and has been seen to crash it.
    """
    status = main(failure=failure)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None, failure: BaseException | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process by default.
        failure: what has come of it already.

    Returns:
        the exit status.
    """
    _prepare_streams()
    arguments = argparse.Namespace(command="", verbose=False)
    try:
        arguments = _parse(argv)
        if failure is not None:
            raise failure  # noqa: TRY301  (below is where errors are told)
        status: int = arguments.run(arguments)
        _print()
    except KeyboardInterrupt:
        told: CondainerError = InterruptedBySignalError(signal.SIGINT)
    except _ReaderGoneError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  (the boundary: no traceback reaches a user unasked)
        told = named(error)
    else:
        return status
    _say_error(told, verbose=arguments.verbose)
    if arguments.command == "exec" and told.exit_status < _EXEC_FAILED:
        return _EXEC_FAILED
    return told.exit_status


def _prepare_streams() -> None:
    """Have something to write to, whatever the caller has done to the standard streams.

    One that is closed is None to Python; what is said to it goes nowhere. It must not be opened
    either: a command that exec runs has it closed, too.
    """
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = cast("TextIO", _Words(sys.stderr or io.StringIO()))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths go out as the bytes they are


class _ReaderGoneError(Exception):
    """Whoever read standard output has gone, as `head` does; nobody else's pipe is meant."""


class _Words:
    """Standard error: what cannot be written there is lost, and nothing fails for that.

    A build goes on when whoever read its progress has gone, or the disk of the log is full.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


def _print(text: str = "") -> None:
    """Write to standard output, all of it, now; controls in it are spelled out.

    Raises:
        _ReaderGoneError: where its reader has gone.
        CondainerError: where it cannot be written for another reason.
    """
    from condainer.units import printable

    _write(printable(text))


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise _ReaderGoneError from None
    except OSError as error:
        raise CondainerError(f"cannot write: {error.strerror}") from error


def _print_path(path: Path) -> None:
    """Write a path to standard output: to a program as the bytes it is, to a terminal as text."""
    if sys.stdout.isatty():
        _print(f"{path}\n")
    else:
        _write(f"{path}\n")


def _tell(text: str) -> None:
    """Write to standard error; controls are spelled out, here for all that commands say."""
    from condainer.units import printable

    sys.stderr.write(printable(text))


def warn(text: str) -> None:
    """Tell what a user should know, and that nothing fails for."""
    from condainer.units import foreign

    _tell(f"condainer: warning: {foreign(text)}\n")


def _say_error(error: CondainerError, *, verbose: bool) -> None:
    from condainer.units import indented

    colour = (
        sys.stderr.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )
    word = "\033[1;31merror:\033[0m" if colour else "error:"
    if verbose:
        import traceback

        _tell("".join(traceback.format_exception(error)))
    sys.stderr.write(f"condainer: {word} ")
    _tell(f"{indented(error.message)}\n")
    if error.hint:
        _tell(f"condainer: {indented(error.hint)}\n")


# The parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    try:
        arguments, unknown = parser.parse_known_args(argv)
    except SystemExit:  # it has printed what was asked for
        _print()
        raise
    if unknown and arguments.command == "exec":
        _ExecParser(prog=parser.prog, usage=_EXEC_USAGE).error(
            f"exec has no option {unknown[0]}: condainer's options stand before 'exec', and '--' "
            "before a command that begins with a dash"
        )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if not arguments.command:
        parser.print_help(sys.stderr)
        parser.exit(_WRONG_USAGE)
    return arguments


class _ExecParser(argparse.ArgumentParser):
    """Wrong usage of `exec` ends with 125, as with `env`: 2 could be the command's own status."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(_EXEC_FAILED, f"condainer: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="condainer",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=_version_text())
    _add_general(parser)
    parser.set_defaults(quiet=False, verbose=False, directory=Path(), dry_run=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_building(commands)
    _add_running(commands)
    _add_telling(commands)
    return parser


def _add_general(parser: argparse.ArgumentParser) -> None:
    """The options of every command; they may stand before it and behind it."""
    unset: Any = argparse.SUPPRESS
    general = parser.add_argument_group("general options")
    words = general.add_mutually_exclusive_group()
    words.add_argument(
        "-q", "--quiet", action="store_true", default=unset, help="say nothing but errors"
    )
    words.add_argument("-v", "--verbose", action="store_true", default=unset, help="say more")
    general.add_argument(
        "-d",
        "--directory",
        type=Path,
        default=unset,
        metavar="DIR",
        help="the project directory (default: the current one)",
    )
    general.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        default=unset,
        help="say what would be done, and do nothing",
    )


def _add(
    commands: Any,  # noqa: ANN401  (argparse's own type has no name)
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    examples: str = "",
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    if name != "exec":  # what stands behind it is the command's own
        _add_general(parser)
    return parser


def _add_building(commands: Any) -> None:  # noqa: ANN401
    init = _add(
        commands,
        "init",
        _init,
        "make a project of the directory: write condainer.yml and an example environment.yml",
        "  condainer init\n  condainer -d project init --environment ../environment.yml\n",
    )
    init.add_argument(
        "--environment", type=Path, metavar="FILE", help="use this environment.yml, no example"
    )
    build = _add(
        commands,
        "build",
        _build,
        "install what environment.yml asks for and compress it into one image",
        "  condainer build                  build the project here\n"
        "  condainer build --force -j 4     build it again, with 4 processors at the most\n"
        "  condainer build --locked         the very same packages as last time\n"
        "  condainer build --offline        nothing is asked for over the network\n"
        "  condainer build a b c            several projects side by side\n",
    )
    build.add_argument(
        "-j",
        "--jobs",
        type=_positive,
        metavar="N",
        help="processors for everything together, no more than this process may use "
        "(default: these, at most 8)",
    )
    build.add_argument(
        "--installer",
        default="",
        metavar="NAME",
        help="micromamba, mamba, conda, a path to one of them, or rattler "
        "(default: the first there is)",
    )
    build.add_argument("--force", action="store_true", help="replace the image that is there")
    build.add_argument(
        "--locked", action="store_true", help="install exactly what the lock file lists"
    )
    build.add_argument(
        "--offline",
        action="store_true",
        help="ask for nothing over the network: take what caches and this machine's disks have",
    )
    build.add_argument(
        "--no-overlap",
        action="store_true",
        help="compress when all is installed, not while other packages are still being fetched",
    )
    build.add_argument(
        "--repack",
        action="store_true",
        help="install nothing: lay out the image that is there anew, as 'profile' has found best, "
        "and compress it harder",
    )
    build.add_argument("directories", nargs="*", type=Path, metavar="DIR", help="projects to build")


def _add_running(commands: Any) -> None:  # noqa: ANN401
    commands._parser_class = _ExecParser  # noqa: SLF001  (argparse has no other way to say it)
    execute = _add(
        commands,
        "exec",
        _exec,
        "run a command from the environment; mounting and unmounting happen by themselves",
        "  condainer exec -- python script.py --option\n"
        "  srun -n 128 condainer -d /project/env exec -- python rank.py\n\n"
        "The exit status is the command's own; 125 where condainer failed, 126 where the command\n"
        "cannot be executed, 127 where there is none.\n",
    )
    commands._parser_class = argparse.ArgumentParser  # noqa: SLF001
    execute.usage = _EXEC_USAGE
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD", help="and its arguments")
    profile = _add(
        commands,
        "profile",
        _profile,
        "run a command once and note which files it reads, for the next build to put together",
        "  condainer profile -- python -c 'import numpy, pandas'\n"
        "  condainer profile -- python train.py    adds what another program reads\n"
        "  condainer profile --new -- python -V    begins the list anew\n"
        "  condainer build --repack         lay out the image anew, without installing\n",
    )
    profile.add_argument(
        "--new", action="store_true", help="leave out what other commands have read before"
    )
    profile.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD", help="the command")
    mount = _add(
        commands,
        "mount",
        _mount,
        "mount the image; it stays until umount",
        "  condainer mount\n  ls $(condainer mount --print)/bin\n",
    )
    mount.add_argument("--print", action="store_true", help="print the mountpoint")
    mount.add_argument(
        "--for-shell",
        nargs="?",
        type=int,
        const=_NO_DESCRIPTOR,
        metavar="FD",
        help="for 'activate': print the file that holds the mount, or hold it with FD opened on it",
    )
    mount.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "squashfuse_ll", "squashfuse", "python", "extract", "kernel"),
        help="what mounts (default: the first that works; extract unpacks; kernel is for root)",
    )
    _add(
        commands,
        "umount",
        _umount,
        "unmount the image, unless something uses it",
        "  condainer umount\n  condainer -d /project/env umount\n",
    )


def _add_telling(commands: Any) -> None:  # noqa: ANN401
    status = _add(
        commands,
        "status",
        _status,
        "tell about the project, its image and its mount",
        "  condainer status\n  condainer status --json | jq -r .mount.state\n",
    )
    status.add_argument("--json", action="store_true", help="for scripts")
    prereq = _add(
        commands,
        "prereq",
        _prereq,
        "try out what this machine can do, and say what is missing",
        "  condainer prereq\n  srun -N 1 condainer prereq    on a node of the cluster\n",
    )
    prereq.add_argument("--json", action="store_true", help="for scripts")
    _add(
        commands,
        "cache",
        _cache,
        "read the image once, so that the next start finds it in memory",
        "  condainer cache && condainer exec -- python script.py\n"
        "  srun --ntasks-per-node=1 condainer -d /project/env cache    once on each node\n",
    )
    collect = _add(
        commands,
        "gc",
        _gc,
        "take away what killed jobs have left on this node: dead mounts, locks, empty directories",
        "  condainer gc\n  condainer -n gc                   only say what it would do\n"
        "  srun --ntasks-per-node=1 condainer gc    on each node of a job\n"
        "  condainer -q gc --user $SLURM_JOB_USER   in an epilogue, as root\n",
    )
    whose = collect.add_mutually_exclusive_group()
    whose.add_argument("--user", metavar="USER", help="what this user has left; for root")
    whose.add_argument("--all", action="store_true", help="what any user has left; for root")
    _add(commands, "version", _version, "print the version", "  condainer version\n")


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 1 or more")
    return number


# The commands


def _open(arguments: argparse.Namespace) -> Project:
    from condainer import project

    return project.open_project(arguments.directory)


def _leave_missing_directory() -> None:
    """Go away from a working directory that has been removed: installers cannot work in one."""
    try:
        Path.cwd()
    except FileNotFoundError:
        os.chdir("/")


def _inform(arguments: argparse.Namespace, text: str) -> None:
    """Say something on standard error that --quiet leaves out."""
    if not arguments.quiet:
        from condainer.units import foreign

        _tell(f"{foreign(text)}\n")


def _notes(arguments: argparse.Namespace) -> Callable[[str], None] | None:
    """What takes the lines that only --verbose shows."""
    return (lambda text: _inform(arguments, f"condainer: {text}")) if arguments.verbose else None


def _init(arguments: argparse.Namespace) -> int:
    from condainer import initialise, project

    directory = project.absolute(arguments.directory)
    written = initialise.initialise(directory, arguments.environment, dry_run=arguments.dry_run)
    verb = "would write" if arguments.dry_run else "wrote"
    for path in written:
        _inform(arguments, f"{verb} {path}")
    if not arguments.dry_run:
        _inform(arguments, "next: edit the environment.yml, then run 'condainer build'")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from condainer import progress, project
    from condainer.pipeline import run, schedule
    from condainer.pipeline.build import Options
    from condainer.units import foreign

    projects = project.open_projects(arguments.directories or [arguments.directory])
    _leave_missing_directory()
    options = Options(
        force=arguments.force,
        locked=arguments.locked,
        offline=arguments.offline,
        installer=arguments.installer,
        dry_run=arguments.dry_run,
        overlap=not arguments.no_overlap,
        repack=arguments.repack,
        idle=(
            _unmount_idle(arguments, projects)
            if arguments.force or arguments.repack
            else frozenset()
        ),
    )
    reporter = progress.reporter(
        quiet=arguments.quiet, verbose=arguments.verbose, several=len(projects) > 1
    )
    usable = schedule.usable()
    jobs = min(arguments.jobs or schedule.MOST, usable)
    if arguments.jobs and arguments.jobs > usable:
        _inform(arguments, f"-j {arguments.jobs}: taking {usable}, all that this process may use")
    with reporter:
        failures = run.build_all(projects, options, jobs, reporter.handle)
    for failure in failures:
        if len(projects) > 1:
            _tell(f"condainer: {foreign(str(failure.project.directory))}:\n")
        _say_error(failure.error, verbose=arguments.verbose)
    return max((failure.error.exit_status for failure in failures), default=0)


def _unmount_idle(arguments: argparse.Namespace, projects: Iterable[Project]) -> frozenset[Path]:
    """Unmount what nobody uses any more; gives what a dry run has left mounted."""
    from condainer.mounting import lifetime

    left = set()
    for project in projects:
        if not arguments.dry_run:
            lifetime.unmount_if_idle(project)
        elif lifetime.is_idle(project):
            _inform(arguments, f"would unmount {project.prefix}, which nobody uses")
            left.add(project.prefix)
    return frozenset(left)


def _exec(arguments: argparse.Namespace) -> int:
    from condainer import execution

    command = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not command:
        raise CondainerError("exec needs a command", "for example: condainer exec -- python -V")
    project = _open(arguments)
    if arguments.dry_run:
        _inform(arguments, f"would run {' '.join(command)} from {project.prefix}")
    else:
        execution.become(
            *(project, command),
            on_note=_notes(arguments),
            on_warning=None if arguments.quiet else warn,
        )
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from condainer import profiling

    command = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not command:
        raise CondainerError("profile needs a command", "such as: condainer profile -- python -V")
    project = _open(arguments)
    if arguments.dry_run:
        _inform(arguments, f"would run {' '.join(command)} and write {project.startup_file}")
        return 0
    on_note = _notes(arguments) or (lambda _: None)
    done = profiling.record(project, command, on_note, warn, new=arguments.new)
    if done.problem:
        warn(done.problem)
    else:
        told = (
            f"{done.files:,} files read, {done.listed:,} listed; 'build --repack' puts them first"
        )
        _inform(arguments, f"{project.startup_file}: {told}")
    return done.status


def _mount(arguments: argparse.Namespace) -> int:
    from condainer import shell
    from condainer.mounting import backends, lifetime, mountpoint

    project = _open(arguments)
    if arguments.dry_run:
        backend = backends.choose(arguments.backend).name
        lifetime.check_image(project)
        _inform(arguments, f"would mount {project.image} at {project.prefix} with {backend}")
        return 0
    if arguments.for_shell == _NO_DESCRIPTOR:
        lifetime.check_image(project)
        _print_path(lifetime.offer(project))
        return 0
    if arguments.for_shell is not None and not lifetime.is_offered(project, arguments.for_shell):
        return shell.TRY_AGAIN  # a mount that nobody could hold would go, and the file with it
    held = lifetime.use(
        project,
        arguments.backend,
        on_note=_notes(arguments),
        on_warning=None if arguments.quiet else warn,
    )
    mount = mountpoint.look(project).mount
    backend = backends.name_of(mount.kind) if mount else arguments.backend
    if arguments.backend not in {"auto", backend}:
        _inform(arguments, f"{project.prefix} is mounted already, with {backend}; it stays so")
    if arguments.for_shell is not None:
        if not lifetime.share(project, arguments.for_shell):
            return shell.TRY_AGAIN
        _print(f"{shell.of_python(project.config)}\n")
        return 0
    lifetime.pin(project)
    os.close(held.descriptor)
    if arguments.verbose:
        _inform(arguments, f"{project.image} is mounted at {project.prefix} with {backend}")
    if arguments.print:
        _print_path(project.prefix)
    elif not arguments.verbose:
        _inform(arguments, f"mounted at {project.prefix}")
    return 0


def _umount(arguments: argparse.Namespace) -> int:
    from condainer.mounting import lifetime, mountpoint

    project = _open(arguments)
    if arguments.dry_run:
        state = mountpoint.look(project).state
        _inform(arguments, f"{project.prefix} is {state.value}; would unmount it if nobody uses it")
        return 0
    has_gone = lifetime.unmount(project)
    if lifetime.end_private_mounts(project) or has_gone:
        lifetime.wait_until_gone(project)
        _inform(arguments, f"unmounted {project.prefix}")
    else:
        _inform(arguments, f"{project.prefix} is not mounted")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from condainer import status

    found = status.gather(_open(arguments))
    _print_found(found, status.render, as_json=arguments.json)
    return 0


def _prereq(arguments: argparse.Namespace) -> int:
    from condainer import prereq, project

    directory = project.absolute(arguments.directory)
    _leave_missing_directory()
    found = prereq.probe(directory)
    _print_found(found, prereq.render, as_json=arguments.json)
    return 0 if found["can_build"] and found["exec"] != "no" else 1


def _print_found(
    found: dict[str, Any], render: Callable[[dict[str, Any]], str], *, as_json: bool
) -> None:
    import json

    text = json.dumps(found, indent=2) if as_json else render(found)
    _print(f"{text}\n")


def _cache(arguments: argparse.Namespace) -> int:
    from condainer import warm
    from condainer.mounting import lifetime
    from condainer.units import human

    project = _open(arguments)
    lifetime.check_image(project)
    if arguments.dry_run:
        _inform(arguments, f"would read {project.image}")
        return 0
    live = sys.stderr.isatty() and not arguments.quiet

    def show(done: int, total: int) -> None:
        if live:
            sys.stderr.write(f"\r{human(done)} of {human(total)} ")

    size = warm.read_all(project.image, show)
    if live:
        sys.stderr.write("\r")
    _inform(arguments, f"read {human(size)} of {project.image}")
    return 0


def _gc(arguments: argparse.Namespace) -> int:
    from condainer import config, files, leftovers, trust

    there = not files.is_missing(arguments.directory / config.CONFIG_NAME)
    base = _open(arguments).config.mount_base_directory if there else None
    done = []

    def tell(text: str) -> None:
        done.append(text)
        _inform(arguments, f"would {text}" if arguments.dry_run else text)

    teller = leftovers.Teller(tell, _notes(arguments) or (lambda _: None))
    whose = [os.getuid()]
    if arguments.user is not None:
        whose = [trust.user_id(arguments.user)]
    elif arguments.all:
        whose = leftovers.owners(base)
    failures = []
    for uid in whose:
        try:
            leftovers.collect_of(uid, base, teller, dry_run=arguments.dry_run)
        except CondainerError as error:
            failures.append(error)
    for failure in failures:
        _say_error(failure, verbose=arguments.verbose)
    if not done and not failures:
        others = arguments.user is not None or arguments.all
        _inform(arguments, f"nothing {'' if others else 'of yours '}is left behind on this node")
    return max((failure.exit_status for failure in failures), default=0)


def _version(_arguments: argparse.Namespace) -> int:
    _print(f"{_version_text()}\n")
    return 0


def _version_text() -> str:
    return f"condainer {condainer.__version__}"
