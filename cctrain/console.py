"""The console that tables go to: stdout, wide enough where it is no terminal."""

from __future__ import annotations

from rich.console import Console

_WIDTH = 130
"""Characters where nobody looks on; rich takes 80, in which every other cell wraps."""


class Stdout(Console):
    """Whose reader may have seen enough (`| head`): `__main__` ends the program then, where rich would with exit code
    1, which is `compare --min-keep`'s."""

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError."""
        raise BrokenPipeError


def console_of(console: Console | None = None, width: int = _WIDTH) -> Console:
    """`console`, or one for stdout on which text stays as it is; `width` counts where it is no terminal."""
    console = console or Stdout(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = width
    return console
