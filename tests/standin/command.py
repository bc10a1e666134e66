"""The commands of the stand-in: which steps `create` takes, in which order, and how it ends.

Statuses of micromamba: 0; 1 for everything that it reports itself; 109 for a wrong command line;
143 after SIGTERM. conda's are the same, but for a package cache that another conda is using: it may
say that it ends with 1, and end with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from rattler.exceptions import ExtractError

from tests.standin import arguments, finishing, packages, request
from tests.standin.console import Console, Row, human_size
from tests.standin.errors import CondaError, CriticalError
from tests.standin.packages import Package

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rattler import RepoDataRecord

    from tests.standin.arguments import Options

_TERMINATED = 128 + signal.SIGTERM


_MIXED = (
    "CondaValueError: Cannot combine package names with explicit package lists. Package names "
    "(python, numpy) are resolved by the solver; explicit files and URLs are installed directly. "
    "Use only package names, or only explicit files/URLs."
)
_CORRUPT = """\
Encountered corrupt package tarball at {cache}/{name}.conda. Conda has
left it in place. Please report this to the maintainers of the package.

CondaSystemExit: Exiting 1
"""


def run(program: str, words: list[str]) -> NoReturn:
    """Run a command line of a program and end the process."""
    signal.signal(signal.SIGTERM, lambda _signal, _frame: os._exit(_TERMINATED))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as in a program that is not in Python
    status = _status(arguments.parse(program, words))
    sys.stdout.flush()
    sys.stderr.flush()
    # rattler's threads do not always survive the end of the interpreter that they were started in.
    os._exit(status)


def _status(options: Options) -> int:
    """Create an environment and turn a failure into words and a status."""
    console = Console(quiet=options.quiet, as_json=options.as_json)
    try:
        asyncio.run(_create(options, console))
    except CriticalError as error:
        if error.error is not None:
            console.error(error.error)
        if error.say is not None:
            console.say(error.say)
        console.critical(error.critical)
        if error.document:
            console.document(error.document)
        return 1
    except CondaError as error:
        sys.stderr.write(f"\n{error.text}\n\n")
        return error.status
    except (OSError, ExtractError) as error:
        console.critical(str(error))
        return 1
    return 0


async def _create(options: Options, console: Console) -> None:
    """Create an environment."""
    wanted = request.read(options)
    if options.is_conda and wanted.is_mixed:
        raise CondaError(_MIXED)
    _clear(options, console)
    if wanted.archives:
        chosen = packages.listed(wanted.archives)
        specs = tuple("{}=={}={}".format(*package.name_version_build) for package in chosen)
    else:
        chosen = await _solve(wanted, console, options)
        specs = wanted.specs
    unpacked = {
        package.url
        for package in chosen
        if packages.cached(package, options.package_cache, _layout(options))
    }
    to_fetch = [package for package in chosen if package.url not in unpacked]
    rows = [_row(package, fetched=package.url in unpacked) for package in chosen]
    download = sum(package.size for package in to_fetch)
    console.transaction(options.prefix, specs, rows, download)
    if options.dry_run:
        console.say("Dry run. Not executing the transaction.\n")
    else:
        await _execute(options, console, chosen, specs)
    console.document(_report(options, to_fetch, chosen))


def _layout(options: Options) -> str:
    return os.environ.get("STANDIN_LAYOUT") or ("flat" if options.is_conda else "hierarchical")


def _clear(options: Options, console: Console) -> None:
    """Make room for a new environment.

    Raises:
        CriticalError: if something that is not an environment is in the way.
    """
    prefix = options.prefix
    if options.command == "install":
        if not (prefix / "conda-meta").exists():
            message = f"No prefix found at: {prefix}"
            raise CriticalError(message, error=message)
        return
    if prefix.is_dir() and (prefix / "conda-meta/history").exists():
        if not options.dry_run:
            shutil.rmtree(prefix)
        return
    if prefix.exists() and not prefix.is_dir():
        message = "Target prefix already exists and is not a folder - aborting."
        raise CriticalError(message, error=message)
    if options.dry_run or not prefix.is_dir():
        return
    if (options.is_conda or arguments.takes_empty()) and not any(prefix.iterdir()):
        if not options.is_conda:
            console.warning("Using existing empty folder as target prefix")
    else:
        message = "Non-conda folder exists at prefix - aborting."
        raise CriticalError(message, error=message)


async def _solve(wanted: request.Request, console: Console, options: Options) -> list[Package]:
    """Find the packages that specs ask for, in the order in which they have to be linked."""
    subdirs = (packages.SUBDIR, "noarch")
    urls = [f"{channel}/{subdir}" for channel in wanted.channels for subdir in subdirs]
    packages.check_channels(reversed(urls))
    try:
        packages.check_specs(wanted.specs)
    except CriticalError:
        console.repodata(urls, shards=False)
        raise
    try:
        cache, stars = options.package_cache, not options.is_conda
        chosen = await packages.find(wanted, cache, offline=options.offline, stars=stars)
    except CriticalError:
        # libmamba tries again before it gives up.
        for _ in range(2):
            console.repodata(urls)
            console.resolving()
        raise
    console.repodata(urls)
    console.resolving()
    console.say("\n")
    return chosen


async def _execute(
    options: Options, console: Console, chosen: list[Package], specs: tuple[str, ...]
) -> None:
    """Fetch everything, then link everything, as micromamba does."""
    prefix = options.prefix
    (prefix / "conda-meta").mkdir(parents=True, exist_ok=True)
    (prefix / "conda-meta/history").touch()
    console.say("\nTransaction starting\n")
    cache, layout = options.package_cache, _layout(options)
    with _using(cache, chosen) if options.is_conda else contextlib.nullcontext():
        records = [
            await packages.fetch(
                *(package, cache, layout),
                trusts_files=options.is_conda,
                offline=options.offline and options.is_conda,  # libmamba fetches all the same
            )
            for package in chosen
        ]
    places = [packages.unpacked(package, cache, layout) for package in chosen]
    await packages.link(records, prefix, places, keeps_errno=options.is_conda)
    for package, record in zip(chosen, records, strict=True):
        console.say(f"Linking {package.distribution}\n")
        _finish(record, options)
    finishing.write_history(prefix, options.words, specs, records)
    if options.is_conda:
        (prefix / "conda-meta/created_at").write_text(str(time.time()))
    if not options.is_conda or os.environ.get("CONDA_REGISTER_ENVS") != "false":
        finishing.register(prefix)
    console.finished(prefix)


@contextlib.contextmanager
def _using(cache: Path, chosen: list[Package]) -> Iterator[None]:
    """Fill a package cache, and be in the way of another conda that does so, as the real one is.

    Raises:
        CondaError: if another does.
    """
    cache.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        time.sleep(float(os.environ.get("STANDIN_PAUSE") or 0))
    except BlockingIOError:
        name = chosen[0].distribution
        raise CondaError(_CORRUPT.format(cache=cache, name=name), status=0) from None
    finally:
        os.close(descriptor)


def _finish(record: RepoDataRecord, options: Options) -> None:
    finishing.compile_modules(record, options.prefix)
    if options.is_conda:
        try:
            finishing.run_script_as_conda(record, options.prefix)
        except CondaError:
            shutil.rmtree(options.prefix)
            raise
    else:
        finishing.run_script(record, options.prefix)


def _row(package: Package, *, fetched: bool) -> Row:
    name, version, build = package.name_version_build
    size = human_size(package.size) if package.record else ""
    return Row(
        name=name,
        version=version,
        build=build,
        channel=package.channel.removeprefix("file://"),
        size="Cached" if fetched else size,
    )


def _short(package: Package) -> dict[str, object]:
    """What conda says of a package to link."""
    document = package.document()
    kept = ("build_number", "build_string", "name", "version")
    return {
        **{key: document[key] for key in kept},
        "base_url": package.channel.rpartition("/")[0],
        "channel": package.channel.split("/")[-2],
        "dist_name": package.distribution,
        "platform": package.channel.rpartition("/")[2],
    }


def _report(options: Options, to_fetch: list[Package], chosen: list[Package]) -> dict[str, object]:
    """Describe what was done as `--json` does."""
    actions: dict[str, object] = {"PREFIX": str(options.prefix)}
    for key, some in (("FETCH", to_fetch), ("LINK", chosen)):
        if some:
            form = _short if options.is_conda and key == "LINK" else Package.document
            actions[key] = [form(package) for package in some]
    return {
        "actions": actions,
        "dry_run": options.dry_run,
        "prefix": str(options.prefix),
        "success": True,
    }
