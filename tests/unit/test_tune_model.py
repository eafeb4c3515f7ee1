"""The models behind the search: memory from two points, what a step asks for, what a row holds, which points."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_steps import H200_GIB, RECIPE, Machine, problem

from cctrain.config import Config
from cctrain.errors import RequestError
from cctrain.request.checks import Layout
from cctrain.request.compose import compose_config
from cctrain.request.startable import check_request
from cctrain.tune import expected, space
from cctrain.tune.memory import fit_memory
from cctrain.tune.point import COMPLETE, OUT_OF_MEMORY, Observation
from cctrain.tune.problem import Gpu, problem_of
from cctrain.tune.step_time import asked, fit_step_time, log_step_time
from cctrain.tune_config import TuneConfig


def with_peak(point, peak_gib):
    return Observation(point=point, outcome=COMPLETE, rate=1.0, step_time_s=1.0, peak_gib=peak_gib)


def of_size(whole, micro_batch, **changes):
    kind = {"global_batch": 32, "is_checkpointing": False, "step": "stock", **changes}
    (point,) = [
        one
        for one in whole.points
        if one.micro_batch == micro_batch and all(getattr(one, key) == value for key, value in kind.items())
    ]
    return point


@pytest.mark.parametrize("factors", [(0.9, 0.6), (1.0, 1.0), (1.1, 1.7)])
def test_two_trials_tell_the_memory_of_all_points_of_their_kind(factors):
    whole = problem(seq_len=[512])

    def peak(point):
        stays, grows = whole.works[point].memory_gib
        return stays * factors[0] + grows * factors[1]

    seen = [with_peak(point, peak(point)) for point in (of_size(whole, 1), of_size(whole, 16))]
    model = fit_memory(whole.works, seen, H200_GIB, 0.1)
    for micro_batch in (2, 8, 32):
        point = of_size(whole, micro_batch)
        assert model.peak_gib(point) == pytest.approx(peak(point), rel=0.03)
        assert model.chance(point) == pytest.approx(float(peak(point) < 0.9 * H200_GIB), abs=0.05)


def test_a_model_without_an_estimate_gets_its_memory_from_two_trials():
    whole = problem(steps=("stock",))
    works = {point: replace(work, memory_gib=None) for point, work in whole.works.items()}
    seen = [with_peak(of_size(whole, size), 10 + 2.0 * size) for size in (1, 8)]
    model = fit_memory(works, seen, 80.0, 0.1)
    assert model.peak_gib(of_size(whole, 16)) == pytest.approx(42, rel=0.05)
    assert model.chance(of_size(whole, 16)) > 0.95
    assert 10 + 2.0 * 32 > 0.9 * 80
    assert model.chance(of_size(whole, 32)) < 0.6


def test_out_of_memory_says_that_more_was_wanted_than_there_is():
    whole = problem(memory_gib=44.0)
    before = fit_memory(whole.works, [], 44.0, 0.1)
    point = of_size(whole, 8)
    after = fit_memory(whole.works, [Observation(point=point, outcome=OUT_OF_MEMORY)], 44.0, 0.1)
    assert after.peak_gib(point) > 0.99 * 44.0 > before.peak_gib(point)
    assert after.chance(point) == after.chance(of_size(whole, 16)) == 0.0
    assert after.chance(of_size(whole, 4)) < before.chance(of_size(whole, 4))
    assert after.chance(of_size(whole, 1)) > 0.5


def test_without_a_limit_of_memory_only_what_ran_out_is_avoided():
    whole = problem(memory_gib=None)
    point = of_size(whole, 8)
    model = fit_memory(whole.works, [Observation(point=point, outcome=OUT_OF_MEMORY)], None, 0.1)
    assert model.chance(of_size(whole, 4)) == 1.0
    assert model.chance(of_size(whole, 16)) == 0.0
    assert model.chance(of_size(whole, 16, is_checkpointing=True)) == 1.0
    assert model.chance(of_size(whole, 16, step="graphed")) == 1.0


def test_what_ran_out_says_nothing_of_a_point_that_holds_no_gradients_beside_its_activations():
    whole = problem(memory_gib=None, recipe={key: value for key, value in RECIPE.items() if key != "peft"})
    accumulating, alone = (of_size(whole, micro_batch, global_batch=4) for micro_batch in (2, 4))
    assert sum(whole.works[alone].memory_gib) < sum(whole.works[accumulating].memory_gib)
    model = fit_memory(whole.works, [Observation(point=accumulating, outcome=OUT_OF_MEMORY)], None, 0.1)
    assert model.chance(alone) == 1.0


def test_checkpointing_takes_less_memory_and_more_time():
    whole = problem()
    plain, again = of_size(whole, 8), of_size(whole, 8, is_checkpointing=True)
    assert sum(whole.works[again].memory_gib) < sum(whole.works[plain].memory_gib)
    assert whole.works[again].flops > whole.works[plain].flops
    assert whole.works[again].crossings > whole.works[plain].crossings


def test_wider_tensor_parallelism_computes_less_and_sends_more():
    whole = problem(ranks=8, global_batch=[32, 32])
    by_width = {point.tensor: whole.works[point] for point in whole.points if point.micro_batch == 4}
    assert sorted(by_width) == [1, 2, 4, 8]
    assert by_width[8].flops == pytest.approx(by_width[1].flops / 8)
    assert by_width[1].memory_gib[1] > by_width[8].memory_gib[1]


def test_whole_replicas_take_more_memory_and_send_next_to_nothing():
    whole = problem(ranks=8, global_batch=[32, 32])
    alike = [one for one in whole.points if one.tensor == 1 and one.micro_batch == 4 and not one.is_checkpointing]
    sharded, replicated = (whole.works[replace(alike[0], is_replicated=which)] for which in (False, True))
    assert replicated.memory_gib[0] > 14.9 > sharded.memory_gib[0]
    assert replicated.memory_gib[1] == sharded.memory_gib[1]
    assert replicated.flops == sharded.flops
    assert 0 < replicated.link_bytes < 0.01 * sharded.link_bytes


def test_a_step_takes_as_long_as_the_slower_of_host_and_gpu():
    whole = problem()
    middle = whole.prior.middle.copy()
    middle[-1] = np.log(50.0)  # the norm: next to none of the faster one shows
    points = [of_size(whole, 1), of_size(whole, 1, step="graphed"), of_size(whole, 32)]
    crossings = np.array([whole.works[point].crossings for point in points])
    times = np.exp(log_step_time(middle, asked(points, whole.works, crossings, np.ones(3))))
    cost, fixed = np.exp(middle[0]), np.exp(middle[3])
    assert times[0] == pytest.approx(32 * crossings[0] * cost + fixed, rel=0.01)  # bound by the host
    assert times[1] < 0.5 * times[0]  # a graph frees it
    assert times[2] > crossings[2] * cost + fixed  # and here the GPU is slower


def test_the_fit_passes_through_what_was_seen_and_is_surer_there():
    whole = problem()
    machine = Machine(whole, "saturating", 5)
    points = [of_size(whole, size) for size in (1, 4, 32)]
    seen = [machine.trial(point) for point in points]
    columns = asked(points, whole.works, np.array([whole.works[point].crossings for point in points]), np.ones(3))
    times = np.log([one.step_time_s for one in seen])
    model = fit_step_time(whole.prior, columns, times)
    fitted, errors = model.predict(columns)
    assert fitted == pytest.approx(times, abs=0.05)
    far = [of_size(whole, 8, is_checkpointing=True)]
    _, far_errors = model.predict(asked(far, whole.works, np.array([whole.works[far[0]].crossings]), np.ones(1)))
    assert far_errors[0] > 1.5 * errors.max()


def test_crossings_are_those_that_trials_of_the_same_kind_counted():
    whole = problem()
    point = of_size(whole, 8)
    seen = [replace(with_peak(point, 1.0), crossings=4 * 10_000.0)]
    assert expected.crossings(whole.works, [], point) == whole.works[point].crossings
    assert expected.crossings(whole.works, seen, of_size(whole, 1)) == pytest.approx(10_000)
    again = of_size(whole, 1, is_checkpointing=True)
    ratio = whole.works[again].crossings / whole.works[point].crossings
    assert expected.crossings(whole.works, seen, again) == pytest.approx(10_000 * ratio)
    graphed = of_size(whole, 1, step="graphed")
    assert expected.crossings(whole.works, seen, graphed) == whole.works[graphed].crossings


def test_padding_grows_with_the_micro_batch_as_it_did_in_the_trials():
    whole = problem()
    seen = [
        replace(with_peak(of_size(whole, size), 1.0), real_tokens=32 * 200.0, padded_tokens=32 * padded)
        for size, padded in ((1, 200.0), (4, 300.0))
    ]
    assert expected.padding(whole.works, seen, of_size(whole, 2)) * 512 == pytest.approx(250)
    assert expected.padding(whole.works, seen, of_size(whole, 8)) * 512 == pytest.approx(350)
    assert expected.real_tokens(whole.works, seen, of_size(whole, 8)) == 200


def points(layout=None, model=None, recipe=RECIPE, **tune):
    config = Config(tune=TuneConfig(**tune), train=recipe)
    layout = layout or Layout(world=1, data=1, tensor=1, pipeline=1, context=1)
    base = space.base_point(config, layout)
    return base, space.points(config, base, layout, model or {})


def test_the_global_batch_stays_unless_a_range_is_named():
    assert {point.global_batch for point in points()[1]} == {16}
    assert {point.global_batch for point in points(global_batch=[8, 64])[1]} == {8, 16, 32, 64}
    assert {point.global_batch for point in points(global_batch=[20, 24])[1]} == {20, 24}


def test_micro_batches_times_accumulation_times_ranks_are_the_global_batch():
    layout = Layout(world=4, data=4, tensor=1, pipeline=1, context=1)
    _, found = points(layout, over=["micro_batch", "layout"])
    assert {(one.tensor, one.micro_batch) for one in found} == {
        *((1, size) for size in (1, 2, 4)),
        *((2, size) for size in (1, 2, 4, 8)),
        *((4, size) for size in (1, 2, 4, 8, 16)),
    }
    assert all(one.micro_batch * one.accumulation * one.data_ranks == one.global_batch for one in found)


def test_tensor_parallelism_divides_the_heads_and_leaves_a_fixed_layout_alone():
    layout = Layout(world=8, data=8, tensor=1, pipeline=1, context=1)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    assert {point.tensor for point in points(layout, heads)[1]} == {1, 2}
    fixed = {**RECIPE, "distributed": {"dp_size": 8}}
    assert {point.tensor for point in points(layout, recipe=fixed)[1]} == {1}


TWO = Layout(world=2, data=2, tensor=1, pipeline=1, context=1)


@pytest.mark.parametrize(
    ("layout", "recipe", "over", "is_tried"),
    [
        (TWO, RECIPE, ["layout"], True),
        (TWO, RECIPE, ["micro_batch"], False),
        (replace(TWO, world=1, data=1), RECIPE, ["layout"], False),
        (replace(TWO, world=4, context=2), RECIPE, ["layout"], False),
        (TWO, {**RECIPE, "peft": None}, ["layout"], False),
        (TWO, {**RECIPE, "distributed": {"mp_policy": {}}}, ["layout"], False),
        (TWO, {**RECIPE, "peft": None, "distributed": {"strategy": "ddp"}}, ["layout"], True),
    ],
)
def test_whole_replicas_are_tried_with_adapters_on_several_gpus(layout, recipe, over, is_tried):
    base, found = points(layout, recipe=recipe, over=over)
    assert (True in {point.is_replicated for point in found}) is is_tried
    assert base in found


def of_gpus(*arguments, memory_gib=H200_GIB, ranks=2):
    """A search on two H200s, or GPUs like them."""
    own = ["weights=random", "data=synthetic", "train.step_scheduler.global_batch_size=8", *arguments]
    config = compose_config([*own, "tune.over=[layout,step]"], is_tuned=True)

    def check(settings):
        return check_request(compose_config([*space.joined(own, settings)]), ranks)

    found = problem_of(config, check(()), Gpu("NVIDIA H200", memory_gib), check)
    return own, config, found, check


@pytest.mark.parametrize(
    "own", [(), ("train.distributed.sequence_parallel=true",), ("+train.distributed.enable_compile=true",)]
)
def test_the_settings_of_whole_replicas_are_those_of_a_run(own):
    arguments, config, found, check = of_gpus("recipe=llama8b_peft", *own)
    replicas = [point for point in found.points if point.is_replicated]
    assert {(one.tensor, one.data_ranks, one.step) for one in replicas} == {(1, 2, "stock"), (1, 2, "graphed")}
    lines = space.settings(config.train, found.base, replicas[0])
    assert {"train.distributed.strategy=ddp", "~train.distributed.sequence_parallel"} <= set(lines)
    assert check(lines).data == 2
    run = compose_config([*space.joined(arguments, lines)]).train
    assert run["distributed"] == space.recipe_of(config.train, found.base, replicas[0])["distributed"]


@pytest.mark.parametrize(("memory_gib", "is_tried"), [(24.0, True), (12.0, False), (None, False)])
def test_whole_replicas_are_tried_where_the_weights_fit_a_gpu(memory_gib, is_tried):
    _, _, found, _ = of_gpus("recipe=llama8b_peft", memory_gib=memory_gib)
    assert (True in {point.is_replicated for point in found.points}) is is_tried
    assert any(not point.is_replicated for point in found.points)
    assert set(found.works) >= set(found.points)


def test_a_recipe_of_whole_replicas_is_searched_with_shards_beside_it():
    replicas = ("train.distributed.strategy=ddp", "~train.distributed.sequence_parallel")
    _, config, found, check = of_gpus("recipe=llama8b_peft", *replicas)
    assert found.base.is_replicated
    shards = next(point for point in found.points if point.tensor == 2)
    assert space.settings(config.train, found.base, shards)[:2] == (
        "train.distributed.tp_size=2",
        "train.distributed.strategy=fsdp2",
    )
    assert check(space.settings(config.train, found.base, shards)).tensor == 2


def test_only_what_may_be_changed_is_changed():
    base, found = points(over=[])
    assert found == [base]
    _, found = points(over=["activation_checkpointing"], seq_len=[256, 512], packing=[0, 2048])
    assert {(one.micro_batch, one.step) for one in found} == {(base.micro_batch, base.step)}
    assert {(one.is_checkpointing, one.seq_len, one.packing) for one in found} == {
        (is_checkpointing, seq_len, packing)
        for is_checkpointing in (False, True)
        for seq_len in (256, 512)
        for packing in (0, 2048)
    }


def test_a_point_becomes_settings_that_name_only_what_differs():
    base, _ = points()
    assert space.settings(RECIPE, base, base) == ()
    other = replace(base, micro_batch=8, is_checkpointing=True, seq_len=1024, packing=2048, step="graphed")
    assert space.settings(RECIPE, base, other) == (
        "train.step_scheduler.local_batch_size=8",
        "+train.distributed.activation_checkpointing=true",
        "+train.packed_sequence.packed_sequence_size=2048",
        "data.seq_len=1024",
        "step=graphed",
    )
    lines = ("step=graphed", "data.seq_len=1024")
    assert space.joined(("recipe=a", "step=stock", "data.seq_len=8"), lines) == ("recipe=a", *lines)


def test_data_that_come_in_whole_micro_batches_are_made_anew():
    recipe = {**RECIPE, "dataset": {"batch_size": 4}}
    base, _ = points(recipe=recipe)
    assert "train.dataset.batch_size=8" in space.settings(recipe, base, replace(base, micro_batch=8))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_trials": 0}, "tune.max_trials=0: allowed is a whole number from 1"),
        ({"over": ["micro_bach"]}, "Did you mean micro_batch?"),
        ({"global_batch": [8]}, r"tune.global_batch=\[8\]: allowed is \[LOW,HIGH\]"),
        ({"global_batch": [64, 8]}, "tune.global_batch"),
        ({"seq_len": [4]}, "tune.seq_len"),
        ({"packing": [-1]}, "tune.packing"),
        ({"memory_margin": 1.0}, "tune.memory_margin=1.0: allowed is a fraction"),
        ({"min_keep": 0.0}, "tune.min_keep"),
        ({"repeats": -1}, "tune.repeats"),
        ({"trial_timeout_s": 0.0}, "tune.trial_timeout_s"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(wrong, says):
    with pytest.raises(RequestError, match=says):
        TuneConfig(**wrong)
