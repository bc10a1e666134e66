"""The commands of the stand-in: which steps `create` takes, in which order, and how it ends.

Statuses: 0; 1 for everything that micromamba itself reports; 109 for a wrong command line; 143
after SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from rattler.exceptions import ExtractError

from tests.standin import arguments, finishing, packages, request
from tests.standin.console import Console, Row, human_size
from tests.standin.errors import CriticalError

if TYPE_CHECKING:
    from pathlib import Path

    from rattler import RepoDataRecord

    from tests.standin.arguments import Options
    from tests.standin.packages import Package

_TERMINATED = 128 + signal.SIGTERM


def run(words: list[str]) -> NoReturn:
    """Run a command line and end the process."""
    signal.signal(signal.SIGTERM, lambda _signal, _frame: os._exit(_TERMINATED))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as in a program that is not in Python
    status = _status(arguments.parse(words))
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
    except (OSError, ExtractError) as error:
        console.critical(str(error))
        return 1
    return 0


async def _create(options: Options, console: Console) -> None:
    """Create an environment."""
    wanted = request.read(options)
    _clear(options, console)
    if wanted.archives:
        chosen = packages.listed(wanted.archives)
        specs = tuple("{}=={}={}".format(*package.name_version_build) for package in chosen)
    else:
        chosen = await _solve(wanted, console)
        specs = wanted.specs
    unpacked = {
        package.url for package in chosen if packages.cached(package, options.package_cache)
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
    if arguments.takes_empty() and not any(prefix.iterdir()):
        console.warning("Using existing empty folder as target prefix")
    else:
        message = "Non-conda folder exists at prefix - aborting."
        raise CriticalError(message, error=message)


async def _solve(wanted: request.Request, console: Console) -> list[Package]:
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
        chosen = await packages.find(wanted)
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
    records = [await packages.fetch(package, options.package_cache) for package in chosen]
    await packages.link(records, prefix, options.package_cache)
    for package, record in zip(chosen, records, strict=True):
        console.say(f"Linking {package.distribution}\n")
        _finish(record, prefix)
    finishing.write_history(prefix, options.words, specs, records)
    finishing.register(prefix)
    console.finished(prefix)


def _finish(record: RepoDataRecord, prefix: Path) -> None:
    finishing.compile_modules(record, prefix)
    finishing.run_post_link_script(record, prefix)


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


def _report(options: Options, to_fetch: list[Package], chosen: list[Package]) -> dict[str, object]:
    """Describe what was done as `--json` does."""
    actions: dict[str, object] = {"PREFIX": str(options.prefix)}
    for key, some in (("FETCH", to_fetch), ("LINK", chosen)):
        if some:
            actions[key] = [package.document() for package in some]
    return {
        "actions": actions,
        "dry_run": options.dry_run,
        "prefix": str(options.prefix),
        "success": True,
    }
