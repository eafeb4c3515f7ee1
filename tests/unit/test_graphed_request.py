"""What step=graphed and step=auto ask of a request, and change in its recipe."""

import json

import pytest

from cctrain.commands import train
from cctrain.config import StepKind
from cctrain.errors import RequestError
from cctrain.request.checks import Layout
from cctrain.request.compose import compose_config
from cctrain.request.graphed import check_step, recipe_run, step_chosen
from cctrain.request.hf import check_engine
from cctrain.request.recipe import recipe_hash

PIPELINE = ("train.distributed.pp_size=2",)
FP8 = ("+train.fp8.enabled=true",)
LATER = ("+train.qat.enabled=true", "+train.qat.fake_quant_after_n_steps=5")
REDRAWN = ("+train.peft.dropout=0.1", "+train.distributed.activation_checkpointing=true")


def composed(*overrides, recipe="llama8b_peft"):
    return compose_config([f"recipe={recipe}", *overrides])


def layout(config):
    pipeline = config.train["distributed"].get("pp_size", 1)
    return Layout(world=4, data=4 // pipeline, tensor=1, pipeline=pipeline, context=1)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (PIPELINE, "train.distributed.pp_size=2"),
        (FP8, "train.fp8.enabled=true"),
        (LATER, "train.qat.fake_quant_after_n_steps=5"),
        (REDRAWN, "train.peft.dropout=0.1"),
        (("+train.distributed.static_graph=true",), "train.distributed.static_graph=true"),
        (("train.distributed.strategy=megatron_fsdp",), "train.distributed.strategy=megatron_fsdp"),
    ],
)
def test_what_no_graph_can_hold_is_refused_by_name_and_left_to_stock_under_auto(overrides, named):
    config = composed("step=graphed", *overrides)
    with pytest.raises(RequestError, match=named) as refusal:
        check_step(config, layout(config))
    assert "allowed is step=stock, or step=auto" in str(refusal.value)
    config = composed("step=auto", *overrides)
    check_step(config, layout(config))
    kind, why = step_chosen(config, layout(config))
    assert kind is StepKind.stock
    assert why.startswith("step=auto: ")
    assert named in why


@pytest.mark.parametrize("override", REDRAWN)
def test_dropout_and_activation_checkpointing_go_with_graphs_one_at_a_time(override):
    config = composed("step=graphed", override)
    check_step(config, layout(config))


def test_a_dry_run_says_which_step_it_would_be_and_why(capsys):
    assert train.run(["recipe=llama70b_sft", "step=auto", "weights=random", "data=synthetic", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["step"] == "stock"
    assert "# step=stock; step=auto: a pipeline" in out


def test_auto_leaves_the_choice_to_the_ranks_where_the_recipe_does_not_tell():
    config = composed("step=auto")
    assert step_chosen(config, layout(config)) == (StepKind.auto, "")


def test_the_seeds_figure_is_of_automodels_own_step():
    config = composed("step=graphed", "measure=seed")
    with pytest.raises(RequestError, match="allowed is step=stock, got step=graphed"):
        check_step(config, layout(config))


def test_the_other_engine_has_no_graphed_step():
    with pytest.raises(RequestError, match="with engine=hf allowed is step=stock"):
        check_engine(composed("step=graphed", "engine=hf"))


def test_compiling_is_a_setting_of_the_graphed_step_only():
    with pytest.raises(RequestError, match=r"step\.compile=false is read with step=graphed and step=auto only"):
        composed("step.compile=false")


def test_a_graphed_step_has_no_pinned_loader_and_no_kernels_that_the_compiler_cannot_fuse():
    config = composed("step=graphed", "+train.dataloader.pin_memory=true", recipe="llama70b_peft")
    assert config.train["dataloader"]["pin_memory"]
    assert config.train["peft"]["use_triton"]
    run = recipe_run(config, layout(config))
    assert "pin_memory" not in run["dataloader"]
    assert run["peft"]["use_triton"] is False
    assert (config.train["dist_env"]["timeout_minutes"], run["dist_env"]["timeout_minutes"]) == (1, 10)
    unstated = composed("step=graphed", "~train.dist_env.timeout_minutes", recipe="llama70b_peft")
    assert recipe_run(unstated, layout(unstated))["dist_env"]["timeout_minutes"] == 10
    uncompiled = composed("step=graphed", "step.compile=false", recipe="llama70b_peft")
    assert recipe_run(uncompiled, layout(uncompiled))["peft"]["use_triton"]


def test_a_request_with_a_graphed_step_is_of_the_same_recipe_as_with_a_stock_one():
    stock, graphed = composed(), composed("step=graphed")
    assert recipe_run(stock, layout(stock)) == stock.train
    assert recipe_hash(stock.train) == recipe_hash(graphed.train)
