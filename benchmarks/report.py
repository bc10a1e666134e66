"""What was measured, for people: `report.md`, `report.html` and the pictures.

A pure function of `results.Results` and of the suites' own `tables` and `figures`: the same results
give the same report at any time, on any machine.
"""

from __future__ import annotations

import base64
import html
import re
from typing import TYPE_CHECKING

from benchmarks import style
from benchmarks.samples import Table
from benchmarks.suites import by_name
from condainer.units import human

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from benchmarks.results import Results
    from benchmarks.samples import Figure
    from benchmarks.suites import Suite

_IMAGE = re.compile(r'src="([^":]+\.png)"')


def write(results: Results, directory: Path) -> Path:
    """Draw the pictures and write both pages.

    Args:
        results: complete or not.
        directory: is there; what has the same names in it is replaced.

    Returns:
        the page in Markdown.
    """
    pictures = draw(results, directory)
    text = markdown(results, pictures)
    page = directory / "report.md"
    _replace(page, text.encode())
    _replace(directory / "report.html", to_html(text, directory).encode())
    return page


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def measured(results: Results) -> list[tuple[Suite, str]]:
    """The suites that gave samples, with their names."""
    found = dict.fromkeys(sample.suite for sample in results.samples)
    return [(by_name(name), name) for name in found]


def draw(results: Results, directory: Path) -> bool:
    """Write the pictures as PNG; False where there is no matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    for suite, name in measured(results):
        for figure in suite.figures(results.of(name)):
            _draw(figure, directory)
    return True


def _draw(figure: Figure, directory: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(style.RC):
        canvas = Canvas(figsize=style.SIZE, layout="constrained")
        axes = canvas.subplots()
        axes.set_title(figure.title, loc="left", fontweight="bold", pad=12)
        figure.draw(axes)
        part = directory / f".{figure.name}.part"
        # Without the version of matplotlib, so that the same results give the same file.
        canvas.savefig(part, format="png", dpi=style.DPI, metadata={"Software": None})
    part.replace(directory / f"{figure.name}.png")


def markdown(results: Results, pictures: bool) -> str:  # noqa: FBT001  (one yes or no)
    """The page."""
    return "\n".join(
        [
            "# What one image saves on this machine",
            "",
            *_headline(results),
            "",
            *_how(results),
            *(
                line
                for suite, name in measured(results)
                for line in _suite(suite, results, name, pictures)
            ),
            *_left_out(results, pictures),
            *_machine(results),
            *_again(results),
        ]
    )


def _headline(results: Results) -> Iterator[str]:
    host = results.host
    yield (
        f"Measured on {results.date[:10]} on {host.get('CPU')}, {host.get('processors')} "
        f"processors, {host.get('memory')} of memory, {host.get('system')}, on "
        f"{host.get('file system')}."
    )
    if results.settings.get("quick"):
        yield (
            "\nThis is a **quick** run: it shows the way, with few rounds and less work; "
            "`python -m benchmarks` without `--quick` measures well."
        )
    if not results.complete:
        yield "\n**This run was interrupted**; here is what was measured until then."
    yield ""
    environment = results.environment
    if environment:
        yield (
            f"- **{environment['files']:,} files and directories became 1 file** of "
            f"{human(environment['image bytes'])}: {environment['packages']} packages"
            + (f", {human(environment['bytes'])}." if "bytes" in environment else ".")
        )
    for suite, name in measured(results):
        headlines = getattr(suite, "headlines", None)
        for line in headlines(results.of(name)) if headlines else ():
            yield f"- {line}"


def _how(results: Results) -> Iterator[str]:
    yield "## How it was measured"
    yield ""
    yield (
        f"Contenders take turns within each of {results.settings.get('rounds')} rounds (A B C, "
        "A B C, …), so that what disturbs the machine for a while disturbs all of them. Figures "
        "are medians, with the least and the most in brackets; ratios are taken round by round, "
        "and their median is shown. Page caches were "
        f"{results.host.get('page caches')}. Each single sample is in `results.json`, with the "
        "host, the versions and the settings; everything here follows from it."
    )
    yield ""


def _suite(suite: Suite, results: Results, name: str, pictures: bool) -> Iterator[str]:  # noqa: FBT001
    samples = results.of(name)
    yield from (f"## {suite.TITLE}", "", suite.ABOUT, "")
    if pictures:
        for figure in suite.figures(samples):
            yield from (f"![{figure.title}]({figure.name}.png)", "", f"*{figure.caption}*", "")
    for table in suite.tables(samples):
        yield from (f"### {table.title}", "", *_table(table), "")
        if table.note:
            yield from (table.note, "")


def _table(table: Table) -> Iterator[str]:
    """Text to the left, numbers to the right."""
    yield _line(table.columns)
    yield _line("---:" if table.is_numeric(index) else "---" for index in range(len(table.columns)))
    yield from (_line(row) for row in table.rows)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _left_out(results: Results, pictures: bool) -> Iterator[str]:  # noqa: FBT001
    missing = dict(results.missing)
    if not pictures:
        missing["pictures"] = "matplotlib is not installed (pip install 'condainer[bench]')"
    yield from ("## What is missing", "")
    if not missing and not results.failed:
        yield "Nothing: each contender could take part, to the end."
    yield from (f"- {name}: {why}" for name, why in missing.items())
    yield from (f"- **{name} failed** {why}" for name, why in results.failed.items())
    yield ""


def _machine(results: Results) -> Iterator[str]:
    yield from ("## The machine", "")
    yield from _table(Table("", ("", ""), tuple(results.host.items())))
    yield ""


def _again(results: Results) -> Iterator[str]:
    suites = results.settings.get("suites")
    names = " ".join(suites) if isinstance(suites, list) else "all"
    quick = " --quick" if results.settings.get("quick") else ""
    yield from (
        "## Once more",
        "",
        "From a clone of Condainer, with what `pip install -e '.[bench]'` brings:",
        "",
        "```sh",
        f"python -m benchmarks {names}{quick} --rounds {results.settings['rounds']} --out again",
        "python -m benchmarks --compare results.json again/results.json",
        "```",
        "",
    )


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #8886; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; background: white; border-radius: 6px; }
code, pre { background: #8882; border-radius: 4px; padding: 0.1em 0.3em; }
pre { padding: 0.8em; overflow-x: auto; }
"""


def to_html(text: str, directory: Path) -> str:
    """The page as one file that needs no other.

    Args:
        text: in Markdown.
        directory: holds the pictures.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def embedded(match: re.Match[str]) -> str:
        content = base64.b64encode((directory / html.unescape(match[1])).read_bytes()).decode()
        return f'src="data:image/png;base64,{content}"'

    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>Condainer: what one image saves</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{_IMAGE.sub(embedded, body)}</body>\n</html>\n"
    )
