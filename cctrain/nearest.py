"""Did you mean: the nearest allowed word, for error messages."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """A sentence naming the nearest of `allowed`, or an empty string."""
    close = get_close_matches(word, [name for name in allowed if name != word], n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
