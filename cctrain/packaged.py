"""Where conf/, recipes/ and launch/ are: inside the installed package, or beside it in a checkout."""

from pathlib import Path


def packaged_dir(name: str) -> Path:
    """Directory `conf`, `recipes` or `launch`. A checkout wins only where the package holds no copy of its own."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


CONF = packaged_dir("conf")
RECIPES = packaged_dir("recipes")
LAUNCH = packaged_dir("launch")
