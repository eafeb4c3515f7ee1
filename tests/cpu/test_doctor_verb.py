"""The verb doctor, on this machine and on one that the stubs of the drivers make up; and that its overrides work."""

import json
import subprocess
import sys

import pytest

from cctrain.commands import doctor
from cctrain.doctor.fit import Machine
from cctrain.doctor.judge import judge
from cctrain.errors import RequestError
from cctrain.packaged import CONF
from cctrain.request.allowed import check_recipe
from cctrain.request.checks import check_layout
from cctrain.request.compose import compose_config
from cctrain.request.graphed import check_step
from tests.stub_nvml import NO_PERMISSION, StubNvml

VERB = """
import sys
from cctrain.commands import doctor
code = doctor.run(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""
NAMES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))
MACHINES = [Machine(0, 0.0), Machine(1, 140.4), Machine(2, 140.4), Machine(8, 140.4), Machine(4, 79.6)]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    return StubNvml(tmp_path_factory.mktemp("stubs"))


@pytest.fixture
def examined(clean_environment, tmp_path):
    """What the verb prints, and its last line."""

    def run(*flags, **environment):
        command = [sys.executable, "-c", VERB, *flags]
        variables = clean_environment | environment
        done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert list(tmp_path.iterdir()) == []  # it leaves nothing behind

        def refuse(constant):
            raise AssertionError(f"the last line holds {constant}")

        return done.stdout, json.loads(done.stdout.splitlines()[-1], parse_constant=refuse)

    return run


def test_a_machine_without_a_gpu_is_told_what_it_would_take(examined):
    text, last = examined()
    assert (last["mode"], last["problem"], last["exit_code"]) == ("off", None, 0)
    assert [finding["recipe"] for finding in last["recipes"]] == NAMES
    verdicts = {finding["recipe"]: finding["fit"] and finding["fit"]["verdict"] for finding in last["recipes"]}
    assert (verdicts["llama8b_sft"], verdicts["tiny_llama_sft"]) == ("no GPU here", None)
    assert "runs on the CPU" in text
    assert "pinned loader" in text
    assert last["platform"]["versions"]["torch"]


def test_for_scripts_there_is_the_line_alone(examined):
    text, last = examined("--json", "--recipe", "llama70b_peft", "llama8b_sft")
    assert len(text.splitlines()) == 1
    assert [finding["recipe"] for finding in last["recipes"]] == ["llama70b_peft", "llama8b_sft"]


def test_a_confidential_machine_is_shown_with_what_hurts_on_it(examined, stubs):
    settings = {"cc_feature": 1, "environment": 2, "ready": 1, "protected_gib": 80, "nvlinks": 18, "gpus": 8}
    environment = stubs.with_cuda(stubs.environment(**settings), multicast="00000000")
    text, last = examined(**environment, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7", NCCL_NVLS_ENABLE="1")
    assert "CC on" in text
    assert "8 x Stub GPU, 80.0 GiB" in text
    assert "NV18 between all GPUs" in text
    assert "offered by 0 of 8 GPUs" in text
    hurts = {hurt["what"] for finding in last["recipes"] for hurt in finding["hurts"]}
    assert {"pinned loader", "eager mode", "per-tensor optimizer", "TP width"} <= hurts
    assert last["platform"]["host"]["environment"]["NCCL_NVLS_ENABLE"] == "0"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"cc_feature": 1, "devtools": 1}, "CC devtools mode"),
        ({"fails": {"nvmlSystemGetConfComputeSettings": NO_PERMISSION}}, "cannot be read"),
    ],
)
def test_a_machine_not_fit_to_measure_is_said_to_be_so_and_is_no_failure(examined, stubs, how, words):
    text, last = examined("--recipe", "llama8b_sft", **stubs.environment(**how), CUDA_VISIBLE_DEVICES="0")
    assert (last["mode"], last["exit_code"]) == ("unknown", 0)
    assert words in last["problem"]
    assert "not fit to measure" in text


def test_no_planted_secret_is_printed(examined):
    text, _ = examined(HF_TOKEN="hf_" + "a1B2" * 9, NCCL_AUTH_KEY="correct-horse", CUDA_CACHE_PATH="/x/correct-horse")
    assert "a1B2" not in text
    assert "correct-horse" not in text
    assert "/x/[redacted]" in text


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(RequestError, match="Did you mean llama8b_peft") as caught:
        doctor.run(["--recipe", "llama8b_pft"])
    assert caught.value.exit_code == 2
    with pytest.raises(RequestError, match="--recipes"):
        doctor.run(["--recipes", "llama8b_peft"])


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("tiny")])
def test_every_override_composes_and_gives_a_recipe_that_may_start(name):
    as_it_is = compose_config([f"recipe={name}"])
    all_wanted = set()
    for machine in MACHINES:
        seen = judge(as_it_is, machine)
        all_wanted |= {seen.fit.overrides, *(seen.fit.overrides + hurt.overrides for hurt in seen.hurts)}
    for wanted in all_wanted - {()}:
        config = compose_config([f"recipe={name}", *wanted])
        check_recipe(config.train)
        check_step(config, check_layout(config.train, config.measure, config.launch.nproc_per_node))
        for override in wanted:
            key, _, value = override.lstrip("+").partition("=")
            node = vars(config)[key.partition(".")[0]]
            for part in key.split(".")[1:]:
                node = node[part] if isinstance(node, dict) else getattr(node, part)
            assert (node.kind.value if key == "step" else str(node).lower()) == value


def test_the_command_line_with_all_overrides_of_a_recipe_runs_dry(run_cctrain):
    seen = judge(compose_config(["recipe=llama70b_peft"]), Machine(8, 140.4))
    overrides = list(dict.fromkeys(override for hurt in seen.hurts for override in hurt.overrides))
    assert len(overrides) == 3
    run = run_cctrain("recipe=llama70b_peft", *overrides, "dry_run=true")
    assert run.code == 0
    assert run.last_line["recipe"]["optimizer"]["fused"] is True
    assert run.last_line["layout"]["tensor"] == 1
