"""What figures are drawn on: widths, palettes, and the way out as SVG for a page or PNG for a slide.

A page has light and dark colours and any width. So its SVGs are drawn with placeholder colours that become CSS
variables, once for a phone and once for anything wider, and their text stays text. One unit is one CSS pixel.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LIGHT = {
    "ink": "#17212b",
    "muted": "#5d6b78",
    "grid": "#dfe4e9",
    "page": "#ffffff",
    "off": "#3d7ea6",
    "on": "#c8374b",
    "emulated1": "#d9730d",
    "emulated2": "#8457c4",
    "emulated3": "#2f8f6b",
    "free": "#2f8f4e",
    "phase1": "#7a8794",
    "phase2": "#3d7ea6",
    "phase3": "#254f7a",
    "phase4": "#d9a321",
    "phase5": "#b8c2cb",
}
"""Also the page's light colours; its dark ones are in page.css."""
_PLACEHOLDERS = {name: f"#0{index:02x}d0b" for index, name in enumerate(LIGHT)}
_RC: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "legend.frameon": False,
    "legend.borderpad": 0,
}


_SLIDE_RECT = (0.02, 0.07, 0.96, 0.82)
"""Left, bottom, width and height of what a slide's title and caption leave."""
_PADS = {"w_pad": 2 / 72, "h_pad": 3 / 72}
"""Inches."""
_SLIDE_TITLE, _SLIDE_CAPTION = 70, 160
"""Characters in a line."""
_TITLE_LINE, _CAPTION_LINE = 27, 15
"""Pixels that a line takes beyond two of the title, and beyond one of the caption."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Where a figure goes."""

    width: int
    """Pixels."""
    height: int | None
    """Pixels, and more where the figure wants more; None: as much as it wants."""
    colours: Mapping[str, str]
    font: float = 12

    @property
    def is_narrow(self) -> bool:
        """Whether it is as wide as a phone."""
        return self.width < 500

    def figure(self, height: float) -> Figure:
        """An empty figure that wants `height` pixels."""
        whole = max(self.height, height / _SLIDE_RECT[3]) if self.height else height
        figure = Figure(figsize=(self.width / 72, whole / 72), dpi=72)
        rect = _SLIDE_RECT if self.height else (0.0, 0.0, 1.0, 1.0)
        figure.set_layout_engine("constrained", rect=rect, **_PADS)
        return figure

    def style(self, axes: Axes, *, grid: str = "x") -> None:
        """The look that all axes share."""
        axes.set_facecolor("none")
        axes.tick_params(colors=self.colours["muted"], labelsize=self.font - 1)
        axes.grid(axis=grid, color=self.colours["grid"], linewidth=1)  # type: ignore[arg-type]
        axes.spines["bottom"].set_color(self.colours["grid"])
        axes.xaxis.label.set(color=self.colours["muted"], size=self.font - 1)
        axes.yaxis.label.set(color=self.colours["muted"], size=self.font - 1)

    def short(self, text: str, most: int = 0) -> str:
        """As much of a name as there is room for: `most` characters, or what goes beside other things."""
        most = most or (36 if self.is_narrow else 60)
        return text if len(text) <= most else f"{text[: most - 3]}..."

    def legend(self, axes: Axes, columns: int) -> None:
        """Above the axes, from the left."""
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0}
        axes.legend(**place, ncols=columns, labelcolor=self.colours["ink"], handlelength=1.2, fontsize=self.font - 0.5)


WIDE, NARROW = Canvas(880, None, _PLACEHOLDERS), Canvas(350, None, _PLACEHOLDERS, font=11.5)
SLIDE = Canvas(960, 540, LIGHT, font=14)


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure that can be drawn on any canvas."""

    name: str
    """Of its file."""
    title: str
    caption: str
    draw: Callable[[Canvas], Figure]
    slide_title: str | None = None
    """Where a slide is to say more."""
    slide_note: str | None = None
    """What a slide is to say below its caption; a page has it once for all."""

    def svg(self, canvas: Canvas) -> str:
        """For a page: inline SVG in CSS variables, without anything that the page could not know."""
        name = f"{self.name}-{canvas.width}"
        text = io.StringIO()
        with matplotlib.rc_context({**_RC, "svg.hashsalt": name, "font.size": canvas.font}):
            figure = self.draw(canvas)
            figure.patch.set_alpha(0)
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        svg = text.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r'(<svg [^>]*?)\s(?:width|height)="[^"]*"(?=[^>]*>)', r"\1", svg, count=1)
        svg = re.sub(r'(<svg [^>]*?)\s(?:width|height)="[^"]*"(?=[^>]*>)', r"\1", svg, count=1)
        svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
        for colour, placeholder in _PLACEHOLDERS.items():
            svg = svg.replace(placeholder, f"var(--{colour})")
        return svg

    def write_png(self, path: Path) -> None:
        """For a slide: 1920 x 1080, or higher where there is more on it, on white, with its title."""
        with matplotlib.rc_context({**_RC, "font.size": SLIDE.font}):
            figure = self.draw(SLIDE)
            title = textwrap.fill(self.slide_title or self.title, _SLIDE_TITLE)
            figure.text(0.025, 0.98, title, color=LIGHT["ink"], size=20, weight="bold", va="top")
            caption = "\n".join(textwrap.fill(text, _SLIDE_CAPTION) for text in (self.caption, self.slide_note) if text)
            figure.text(0.025, 0.015, caption, color=LIGHT["muted"], size=11, va="bottom")
            left, bottom, width, height = _SLIDE_RECT
            pixels = figure.get_figheight() * figure.dpi
            above = max(0, title.count("\n") - 1) * _TITLE_LINE / pixels
            below = caption.count("\n") * _CAPTION_LINE / pixels
            rect = (left, bottom + below, width, height - below - above)
            figure.set_layout_engine("constrained", rect=rect, **_PADS)
            figure.savefig(path, format="png", dpi=144, facecolor=LIGHT["page"])
