"""The frame of the HTML pages, and their pieces. Whatever comes from a record is escaped here, where it is put in, and
nowhere else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from cctrain import __version__
from cctrain.report.plots.canvas import LIGHT, NARROW, WIDE, Picture


def page(verb: str, **parts: str) -> str:
    """The whole file: what all pages share, around VERB.html. `parts`, `title` and `about` among them, go into both."""
    colours = ";".join(f"--{name}:{colour}" for name, colour in LIGHT.items())
    return _template("page.html").substitute(
        parts,
        verb=verb,
        style=_template("page.css").substitute(light=colours),
        main=_template(f"{verb}.html").substitute(parts),
        version=text(__version__),
    )


def _template(name: str) -> Template:
    return Template((Path(__file__).parent / name).read_text(encoding="utf-8"))


def text(value: object) -> str:
    """Escaped."""
    return html.escape(str(value), quote=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "figures") -> str:
    """Cells carry their column's name, which a phone shows instead of the head."""
    head = "".join(f"<th scope=col>{text(column)}</th>" for column in columns)
    body = []
    for row in rows:
        cells = "".join(
            f'<td data-name="{text(column)}">{text(cell)}</td>' for column, cell in zip(columns, row, strict=True)
        )
        body.append(f"<tr>{cells}</tr>")
    return f"<table class={kind}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def figure(picture: Picture) -> str:
    """Drawn for a wide page and for a phone, which shows its own."""
    drawn = "".join(
        f'<div class="{name}">{picture.svg(canvas)}</div>' for name, canvas in (("wide", WIDE), ("narrow", NARROW))
    )
    return (
        f'<figure id="{text(picture.name)}" aria-label="{text(picture.title)}"><h3>{text(picture.title)}</h3>'
        f"{drawn}<figcaption>{text(picture.caption)}</figcaption></figure>"
    )
