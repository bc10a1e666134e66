"""Runs the packages' post-link scripts as conda does: in order, after all packages are linked.

Only the scripts are run that the installer has not run itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from condainer.errors import BuildError
from condainer.pipeline.packages import read_records
from condainer.pipeline.workplace import last_lines
from condainer.system import files, tools

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from condainer.pipeline.packages import Package
    from condainer.pipeline.workplace import Workplace

_MESSAGES = ".messages.txt"


def has_post_link(prefix: Path, packages: Iterable[Package]) -> bool:
    """Whether any package has a post-link script.

    Args:
        prefix: the environment.
        packages: that are linked there.
    """
    return any(_script_of(prefix, package).exists() for package in packages)


async def run_post_link(prefix: Path, packages: Iterable[Package], workplace: Workplace) -> None:
    """Run the post-link script of each package that has one.

    Args:
        prefix: the environment.
        packages: in any order; each script runs after those of the packages that its own needs.
        workplace: where the scripts run, with the variables of the activated environment.

    Raises:
        BuildError: If a script fails; the message has its last lines.
    """
    shell = tools.which("bash") or tools.which("sh")
    for package in _in_order(prefix, packages):
        script = _script_of(prefix, package)
        if script.name not in files.names(script.parent, within=prefix):
            continue
        if files.leads_out(script, within=prefix):
            raise BuildError(
                f"the post-link script of {package.stem} is a link that leads out of the "
                "environment",
                "leave that package out, and report this to its channel",
            )
        answer = await workplace.run(
            [str(shell), str(script)],
            cwd=prefix,
            environment=_variables(prefix, package, workplace),
        )
        if answer.returncode != 0:
            raise BuildError(
                f"the post-link script of {package.stem} failed ({answer.verdict}):\n"
                f"{last_lines(answer.tail)}"
            )


def _in_order(prefix: Path, packages: Iterable[Package]) -> list[Package]:
    """Sort packages, each after those it depends on: a foreign lock file may mix them."""
    needs = {record.package.name: record.needs for record in read_records(prefix)}
    wanted = {package.name: package for package in packages}
    ordered: list[Package] = []
    begun: set[str] = set()
    for first in wanted:
        path = [(first, iter(needs.get(first, ())))] if first not in begun else []
        begun.add(first)
        while path:
            name, left = path[-1]
            needed = next((each for each in left if each not in begun), None)
            if needed is not None:
                begun.add(needed)
                path.append((needed, iter(needs.get(needed, ()))))
            else:
                path.pop()
                ordered += [wanted[name]] if name in wanted else []
    return ordered


def _script_of(prefix: Path, package: Package) -> Path:
    return prefix / "bin" / f".{package.name}-post-link.sh"


def take_messages(prefix: Path) -> list[str]:
    """Read what the scripts left for the user to read, and remove the file.

    Args:
        prefix: the environment.

    Raises:
        BuildError: If it is no regular file.
    """
    path = prefix / _MESSAGES
    try:
        text = files.read(path, within=prefix).decode(errors="replace")
        path.unlink()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error
    return [line for line in text.splitlines() if line.strip()]


def _variables(prefix: Path, package: Package, workplace: Workplace) -> dict[str, str]:
    return {
        **workplace.environment,
        "ROOT_PREFIX": str(prefix),
        "PREFIX": str(prefix),
        "PKG_NAME": package.name,
        "PKG_VERSION": package.version,
        "PKG_BUILDNUM": str(package.build_number),
    }
