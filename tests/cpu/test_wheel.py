"""The built wheel, away from the checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Directory into which the wheel was installed."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels]  # by the extra dev's hatchling
    subprocess.run([*pip, *build, CHECKOUT], check=True, timeout=120)
    (wheel,) = wheels.glob("cctrain-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True, timeout=60)
    return target


@pytest.fixture(scope="module")
def run_python(installed, tmp_path_factory):
    """Run Python with what was installed, in a directory of its own."""
    cwd = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=cwd, env=environment, check=True, timeout=60, capture_output=True, text=True
        ).stdout

    return run


def test_conf_and_recipes_are_inside_the_installed_package(installed, run_python):
    code = "import cctrain.packaged as p; print(p.__file__, p.CONF, p.RECIPES, sep='\\n')"
    package = installed / "cctrain"
    assert run_python("-c", code).split() == [str(package / name) for name in ("packaged.py", "conf", "recipes")]
    for folder in ("conf", "recipes", "launch"):
        built = {path.relative_to(package) for path in (package / folder).rglob("*") if path.is_file()}
        source = {path.relative_to(CHECKOUT) for path in (CHECKOUT / folder).rglob("*") if path.is_file()}
        assert {path for path in built if path.suffix != ".pyc"} == {path for path in source if path.suffix != ".pyc"}


def test_the_wheel_shows_its_help(run_python):
    assert "usage: python -m cctrain" in run_python("-m", "cctrain", "--help")


def test_the_wheel_composes_a_recipe_of_its_own(installed, run_python):
    shown = run_python("-m", "cctrain", "recipe=llama70b_peft", "weights=random", "dry_run=true")
    recipe = json.loads(shown.splitlines()[-1])["recipe"]
    model = installed / "cctrain" / "recipes" / "models" / "llama-3.3-70b"
    assert recipe["model"]["config"]["pretrained_model_name_or_path"] == str(model)


def test_a_request_is_composed_without_torch(run_python):
    code = (
        "import sys; from cctrain.__main__ import main; main(['recipe=llama70b_peft', 'dry_run=true']);"
        "print(sorted({'torch', 'nemo_automodel', 'transformers'} & set(sys.modules)))"
    )
    assert run_python("-c", code).splitlines()[-1] == "[]"
