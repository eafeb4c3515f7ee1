"""A campaign's matrix and the order of its trials."""

import pytest

from cctrain.campaign.keys import Keys
from cctrain.campaign.matrix import parse, presets, split
from cctrain.campaign.plan import planned
from cctrain.errors import RequestError
from cctrain.report.words import SEED_LOSSES

VERSIONS = {"automodel": {"torch": "2.13.0"}, "hf": {"torch": "2.13.0", "peft": "0.20.0"}}
PLATFORM = {"gpu": ["NVIDIA H200"], "num_gpus": 8, "versions": VERSIONS}
EMULATED = ("recipe=tiny_llama_peft", "measure.steps=64", "tolls=b300")


def trials(*arguments, first="off"):
    return planned(parse(list(arguments)), first)


def refusal(*arguments):
    with pytest.raises(RequestError) as caught:
        trials(*arguments)
    return str(caught.value)


def test_every_combination_is_run_as_often_as_asked():
    found = trials("recipe=a,b", "cc=off,emulated", "tolls=b300,hopper", "data.seq_len=256,512", "campaign.repeats=3")
    assert len(found) == 2 * 3 * 2 * 3  # a profile is of emulated runs only
    assert len({(trial.settings, trial.repeat) for trial in found}) == len(found)
    assert len({trial.label for trial in found}) == len(found)


def test_settings_of_emulated_runs_go_to_no_other():
    found = trials("recipe=a", "cc=off,emulated", "tolls=b300", "cc.blocks=4")
    by_mode = {trial.mode: trial.settings for trial in found}
    assert by_mode == {
        "off": ("recipe=a", "cc=off"),
        "emulated": ("recipe=a", "cc=emulated", "tolls=b300", "cc.blocks=4"),
    }


def test_modes_that_need_no_reboot_are_taken_by_turns_every_second_round_backwards():
    found = trials("recipe=a,b", "cc=off,emulated", "tolls=b300", "campaign.repeats=2")
    assert [(trial.settings[0][-1], trial.mode) for trial in found] == [
        *(("a", "off"), ("a", "emulated"), ("b", "off"), ("b", "emulated")),
        *(("a", "emulated"), ("a", "off"), ("b", "emulated"), ("b", "off")),
    ]


@pytest.mark.parametrize(("first", "other"), [("off", "on"), ("on", "off"), ("unknown", "on")])
@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_a_mode_that_takes_a_reboot_stands_between_two_halves_of_the_one_begun_in(first, other, repeats):
    found = trials("recipe=a", "cc=off,on", f"campaign.repeats={repeats}", first=first)
    first = "on" if other == "off" else "off"
    half = (repeats + 1) // 2
    assert [trial.mode for trial in found] == [first] * half + [other] * repeats + [first] * (repeats - half)
    assert {trial.phase for trial in found} == {0, 1, 2}
    assert sorted(trial.repeat for trial in found) == sorted([*range(1, repeats + 1)] * 2)


def test_commas_in_brackets_and_quotes_are_no_lists():
    assert split("[a,b],'c,d',e") == ["[a,b]", "'c,d'", "e"]
    assert trials("recipe=a", "allow_targets=[x,y]", "~train.gone", "campaign.repeats=1")[0].settings == (
        *("recipe=a", "allow_targets=[x,y]", "~train.gone", "cc=auto"),
    )


@pytest.mark.parametrize("text", ["steady,identity.gpu", "[steady,identity.gpu]", "['steady', \"identity.gpu\"]"])
def test_what_the_comparison_lets_pass_may_stand_in_brackets(text):
    assert parse(["recipe=a", f"campaign.allow={text}"]).allow == ("steady", "identity.gpu")


def test_an_empty_list_takes_back_what_a_preset_lets_pass():
    assert parse(["campaign=tiny"]).allow == ("steady",)
    assert parse(["campaign=tiny", "campaign.allow=[]"]).allow == ()


def test_what_is_compared_stays_within_one_group_of_settings():
    found = trials("recipe=a,b", "cc=off,on", "train.x=1,2", "campaign.repeats=1")
    assert {trial.group for trial in found} == {("train.x=1",), ("train.x=2",)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cc=off",), "no recipe given"),
        (("recipe=a", "cc=of"), "cc=of: allowed is off"),
        (("recipe=a", "cc=off,auto"), "auto takes any mode and stands alone"),
        (("recipe=a,a",), "named twice"),
        (("recipe=a,",), "a value between any two commas"),
        (("recipe=a", "recipe=b"), "recipe is given twice"),
        (("recipe=a", "campaign.repeats=0"), "a whole number from 1"),
        (("recipe=a", "campaign.repeat=3"), "Did you mean campaign.repeats?"),
        (("recipe=a", "repeats=3"), "unknown key repeats. Did you mean campaign.repeats?"),
        (("recipe=a", "run_root=x,y"), "allowed is one value"),
        (("recipe=a", "dry_run=maybe"), "allowed is true or false"),
        (("recipe=a", "cc=emulated", "tolls=b300", "cc.blocks=4,8"), "cc.blocks=4,8: allowed is one number"),
        (("campaign=sed",), "Did you mean seed?"),
        (("recipe=a", "campaign.allow=stedy"), "campaign.allow=stedy: allowed is status, steady"),
        (("recipe=a", "campaign.allow=identity."), "campaign.allow=identity.: allowed is status, steady"),
        (("a", "b"), "settings are written key=value"),
        (("--repeats", "3"), "settings are written key=value"),
    ],
)
def test_a_refusal_says_what_is_allowed(arguments, words):
    assert words in refusal(*arguments)


@pytest.mark.parametrize("name", presets())
def test_every_trial_of_every_preset_composes(name):
    keys = Keys(PLATFORM)
    found = trials(f"campaign={name}")
    assert len({keys.key(trial) for trial in found}) == len(found)


def test_the_seed_preset_is_the_four_published_rows_off_and_on():
    found = trials("campaign=seed")
    assert {trial.settings[0].removeprefix("recipe=") for trial in found} == set(SEED_LOSSES)
    assert {trial.mode for trial in found} == {"off", "on"}
    assert trials("campaign=seed", "recipe=llama70b_peft", "weights=random")[0].settings == (
        *("recipe=llama70b_peft", "measure=seed", "weights=random", "cc=off"),
    )


def upgraded(engine):
    return {**PLATFORM, "versions": {**VERSIONS, engine: {"torch": "2.14.0"}}}


def test_a_key_knows_settings_repeat_and_platform_and_nothing_of_where_and_how_it_is_shown():
    def key(*arguments, platform=PLATFORM, number=0):
        return Keys(platform).key(trials(*EMULATED, "cc=off,emulated", *arguments)[number])

    own = key()
    assert own == key() == key("track=none") == key("run_root=elsewhere") == key("campaign.repeats=9")
    others = {
        key(number=1),
        key(number=3),
        key("train.optimizer.lr=0.1"),
        key(platform={**PLATFORM, "num_gpus": 1}),
        key(platform=upgraded("automodel")),
        key("engine=hf", platform=PLATFORM),
        key("engine=hf", platform=upgraded("hf")),
    }
    assert len(others | {own}) == 8
    assert key(platform=upgraded("hf")) == own


def test_a_trial_that_could_never_start_is_named():
    (trial,) = trials("recipe=tiny_llama_peft", "train.step_scheduler.local_batch_size=3", "campaign.repeats=1")
    with pytest.raises(RequestError, match=r"recipe=tiny_llama_peft cc=auto repeat 1: .*does not divide"):
        Keys(PLATFORM).key(trial)
