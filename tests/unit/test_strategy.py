"""What AutoModel's strategies refuse is refused before the ranks start, with the overrides that mend it."""

import pytest

from cctrain.errors import RequestError
from cctrain.request.compose import compose_config
from cctrain.request.strategy import check_strategy

REPLICAS = ("train.distributed.strategy=ddp", "train.distributed.tp_size=1")


def check(*overrides, recipe="llama70b_peft"):
    check_strategy(compose_config([f"recipe={recipe}", *overrides]))


@pytest.mark.parametrize("recipe", ["llama70b_peft", "llama70b_sft", "gemma31b_peft", "tiny_llama_peft"])
def test_recipes_as_they_come_are_taken(recipe):
    check(recipe=recipe)


def test_ddp_names_the_keys_of_another_strategy_and_how_to_leave_them_out():
    with pytest.raises(RequestError, match="does not take sequence_parallel") as refusal:
        check(*REPLICAS)
    removal = "'~train.distributed.sequence_parallel'"
    assert str(refusal.value).endswith(removal)
    check(*REPLICAS, removal.strip("'"))


def test_ddp_has_no_other_way_to_share_a_model():
    with pytest.raises(RequestError, match=r"tp_size=4: with strategy=ddp.* allowed is 1"):
        check("train.distributed.strategy=ddp")


def test_what_automodel_takes_with_ddp_is_taken():
    check(*REPLICAS, "~train.distributed.sequence_parallel", "+train.distributed.pipeline={}", recipe="llama70b_peft")


def test_an_unknown_strategy_is_refused_with_the_nearest():
    with pytest.raises(RequestError, match=r"strategy=dpp: allowed is ddp, fsdp2, .* Did you mean"):
        check("train.distributed.strategy=dpp")


def test_the_strategys_name_counts_in_capitals_too():
    with pytest.raises(RequestError, match="does not take sequence_parallel"):
        check("train.distributed.strategy=DDP", "train.distributed.tp_size=1")


def test_a_pipeline_needs_its_section():
    with pytest.raises(RequestError, match=r"pp_size=2 needs .*add \+train\.distributed\.pipeline=\{\}"):
        check("train.distributed.pp_size=2")
    check("train.distributed.pp_size=2", "+train.distributed.pipeline={}")


def test_the_other_engine_takes_ddp_as_the_recipe_stands():
    check("engine=hf", *REPLICAS)
