"""Every command of the README and of `--help` is one that can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from cctrain.__main__ import HELP
from cctrain.campaign.keys import Keys, platform_identity
from cctrain.campaign.matrix import parse
from cctrain.campaign.plan import planned
from cctrain.commands import explain
from cctrain.packaged import CONF
from cctrain.platform import gpu
from cctrain.request.compose import compose_config
from cctrain.request.startable import check_request, ranks_per_node
from cctrain.tune.request import checked

README = (Path(__file__).parents[2] / "README.md").read_text()
TEXT = re.sub(r"\\\n\s*", "", README + HELP)
LINES = {line.strip() for line in re.findall(r"^ *python -m cctrain .*recipe=.*$", TEXT, re.MULTILINE)}
COMMANDS = sorted(line for line in LINES if "recipe=my_recipe.yaml" not in line)


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 10


@pytest.fixture
def liger_kernel(monkeypatch, tmp_path):
    """A package that one of the commands needs, and the machine that checks them need not have."""
    (tmp_path / "liger_kernel").mkdir()
    (tmp_path / "liger_kernel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("liger_kernel")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_could_be_started(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"prompt": "?", "reply": "!"}\n')
    arguments = shlex.split(re.split(r" {3,}", command)[0])[3:]
    if arguments[0] == "campaign":
        assert Keys(platform_identity(gpu.observe())).key(planned(parse(arguments[1:]))[-1])
        return
    if arguments[0] == "tune":
        assert checked([*arguments[1:], "dry_run=true", "launch.nproc_per_node=1"]).problem.points
        return
    if arguments[0] == "explain":
        arguments = explain.settings(arguments[1:])
    config = compose_config(arguments)
    check_request(config, ranks_per_node(config) * config.launch.num_nodes)


def test_help_names_every_recipe():
    assert all(path.stem in HELP for path in (CONF / "recipe").glob("*.yaml"))
