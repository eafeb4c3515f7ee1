"""The command line to a config: what is accepted, and what each refusal says."""

from pathlib import Path

import pytest
import yaml

from cctrain.config import DEFAULT_BLOCKS, CcMode, Config
from cctrain.emulation.blocks import ALL, OFF, fewest_steps
from cctrain.emulation.profile import load_profile
from cctrain.errors import RequestError
from cctrain.packaged import CONF, RECIPES
from cctrain.request.allowed import check_recipe
from cctrain.request.checks import Layout
from cctrain.request.compose import compose_config
from cctrain.request.identity import identity
from cctrain.request.recipe import recipe_hash
from cctrain.stats import MIN_STEPS

NAMES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))


def composed(*arguments: str) -> Config:
    return compose_config(list(arguments))


def refusal(*arguments: str) -> str:
    with pytest.raises(RequestError) as caught:
        composed(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_composes_and_imports_only_what_is_allowed(name):
    config = composed(f"recipe={name}")
    check_recipe(config.train)
    assert config.recipe.name == name


def test_a_port_is_one_that_there_is():
    for port in (0, 70000):
        with pytest.raises(RequestError, match="allowed is HOST:PORT"):
            composed("recipe=tiny_llama_peft", "launch.num_nodes=2", f"launch.rdzv_endpoint=node0:{port}")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_measures_enough_steps_for_a_verdict_on_emulated_tolls(name):
    steps = composed(f"recipe={name}", "cc=emulated", "tolls=b300").measure.most_steps
    assert steps >= fewest_steps(len((OFF, ALL)), DEFAULT_BLOCKS, MIN_STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_composes_with_random_weights(name):
    config = composed(f"recipe={name}", "weights=random")
    check_recipe(config.train)
    assert config.train["model"]["_target_"].endswith(".from_config")
    folder = config.train["model"]["config"]["pretrained_model_name_or_path"].removeprefix("{recipes}/")
    assert (RECIPES / folder / "config.json").is_file()


OTHERS = ("recipe", "campaign")
CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name not in OTHERS)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_conf_file_composes(choice):
    needs = {
        "data=jsonl": ["data.path=x.jsonl"],
        "data=medpix": ["recipe=tiny_gemma_peft"],
        "weights=pretrained": ["weights.path=x"],
        "cc=emulated": ["tolls=b300"],
    } | {f"tolls={path.stem}": ["cc=emulated"] for path in (CONF / "tolls").glob("*.yaml")}
    wanted = needs.get(choice, [])
    recipe = [] if any(key.startswith("recipe=") for key in wanted) else ["recipe=tiny_llama_peft"]
    assert composed(*recipe, choice, *wanted) is not None


def test_every_recipe_file_has_an_entry_in_conf():
    named = {yaml.safe_load((CONF / "recipe" / f"{name}.yaml").read_text())["recipe"]["file"] for name in NAMES}
    assert {path.name for path in RECIPES.glob("*.yaml")} == named


def test_a_recipe_at_another_size_names_weights_of_its_own():
    models = [composed("recipe=llama1b_peft", f"weights={kind}").train["model"] for kind in ("pretrained", "random")]
    assert models[0]["pretrained_model_name_or_path"] == "meta-llama/Llama-3.2-1B-Instruct"
    assert models[1]["config"]["pretrained_model_name_or_path"] == "{recipes}/models/llama-3.2-1b"


def test_on_and_off_stay_words():
    assert composed("recipe=tiny_llama_peft", "cc=on").cc.mode is CcMode.on
    assert composed("recipe=tiny_llama_peft", "cc=off").cc.mode is CcMode.off
    for path in (CONF / "cc").glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text())["mode"], str)


def test_recipe_keys_are_overridden_added_and_dropped():
    train = composed(
        *("recipe=tiny_llama_peft", "train.step_scheduler.local_batch_size=1", "+train.nvtx=true"),
        *("~train.lr_scheduler", "train.distributed.tp_size=none"),
    ).train
    assert train["step_scheduler"]["local_batch_size"] == 1
    assert train["distributed"]["tp_size"] == "none"
    assert train["nvtx"] is True
    assert "lr_scheduler" not in train


def test_an_override_wins_over_what_data_put_in():
    train = composed("recipe=tiny_llama_peft", "data=pydoc", "train.dataset.seq_length=64").train
    assert train["dataset"]["seq_length"] == 64


def test_the_seed_method_is_the_default():
    config = composed("recipe=llama70b_peft")
    assert (config.measure.warmup, config.measure.steps) == (10, 100)
    assert config.train["step_scheduler"]["max_steps"] == 110
    assert config.train["checkpoint"]["enabled"] is False
    assert not [key for key in config.train if key.startswith("validation")]


def own_recipe(tmp_path: Path, **changes) -> str:
    recipe = yaml.safe_load((RECIPES / "llama70b_peft.yaml").read_text()) | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


def test_a_recipe_file_of_your_own_is_run_as_it_is(tmp_path):
    config = composed(f"recipe={own_recipe(tmp_path, seed=7)}")
    assert config.recipe.name == "mine"
    assert config.train["seed"] == 7
    assert config.train["model"]["_target_"].endswith("from_pretrained")


def test_an_own_recipes_environment_variables_are_left_to_automodel(tmp_path):
    path = own_recipe(tmp_path, note="${oc.env:MY_DATA}/x and ${OTHER}")
    assert composed(f"recipe={path}").train["note"] == "${oc.env:MY_DATA}/x and ${OTHER}"


def test_a_backslash_does_not_bring_an_interpolation_to_life(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    path = own_recipe(tmp_path, note=r"\${oc.env:HF_TOKEN}")
    train = composed(f"recipe={path}", "train.seed=3").train
    assert train["note"] == r"\${oc.env:HF_TOKEN}"
    with pytest.raises(RequestError, match="HF_TOKEN"):
        check_recipe(train)


@pytest.mark.parametrize("name", ["with space.yaml", "a=b.yaml", "my(1).yaml", "it's.yaml"])
def test_a_recipe_file_may_be_named_anything(tmp_path, name):
    path = tmp_path / name
    path.write_text((RECIPES / "llama70b_peft.yaml").read_text())
    assert composed(f"recipe={path}").recipe.name == path.stem


def test_a_recipe_may_name_its_class_as_a_target(tmp_path):
    target = "nemo_automodel.recipes.llm.train_ft.TrainFinetuneRecipeForNextTokenPrediction"
    config = composed(f"recipe={own_recipe(tmp_path, recipe={'_target_': target})}")
    assert config.train["recipe"] == "TrainFinetuneRecipeForNextTokenPrediction"


def test_empty_sections_and_dates_of_an_own_recipe_do_no_harm(tmp_path):
    path = own_recipe(tmp_path, checkpoint=None, dist_env=None)
    with Path(path).open("a") as file:
        file.write("made: 2026-01-01\n")
    train = composed(f"recipe={path}", "train.seed=3").train
    assert train["made"] == "2026-01-01"
    assert train["checkpoint"]["enabled"] is False


@pytest.mark.parametrize(
    ("override", "because"),
    [
        ("~train.step_scheduler", "needs the section step_scheduler"),
        ("train.model=null", "needs the section model"),
        ("train.recipe=Foo", "its key recipe is 'Foo'"),
        ("train.dataset=3", "needs the section dataset"),
        ("train.dataloader=3", "section dataloader is 3; allowed is a mapping, or to leave it out"),
        ("train.optimizer=sgd", "needs the section optimizer"),
        ("train.loss_fn=null", "needs the section loss_fn"),
        ("train.lr_scheduler=cosine", "section lr_scheduler is 'cosine'; allowed is a mapping, or null"),
        ("train.peft=none", "section peft is 'none'; allowed is a mapping, or null"),
        ("train.optimizer.lr=abc", "train.optimizer.lr=abc: allowed is a number, as the recipe's 0.01"),
    ],
)
def test_overrides_that_leave_no_recipe_are_refused(override, because):
    with pytest.raises(RequestError, match=because):
        composed("recipe=tiny_llama_peft", override)


def test_a_section_may_be_null_where_automodel_has_a_default():
    assert composed("recipe=tiny_llama_peft", "train.lr_scheduler=null", "train.peft=null").train["peft"] is None


def test_trackers_of_an_own_recipe_stay_out_of_the_trained_process(tmp_path):
    assert "wandb" not in composed(f"recipe={own_recipe(tmp_path, wandb={'project': 'x'})}").train


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipe=tiny_lama_peft"], ["tiny_lama_peft", "Did you mean tiny_llama_peft?"]),
        (["recipe=no/such.yaml"], ["no/such.yaml", "no such file"]),
        (["measure.steps=3"], ["no recipe given", "llama70b_peft"]),
        (["recipe=tiny_llama_peft", "mesure.steps=3"], ["mesure.steps", "Did you mean measure.steps?"]),
        (["recipe=tiny_llama_peft", "measure.steps=many"], ["measure.steps=many", "a whole number from 1, or auto"]),
        (["recipe=tiny_llama_peft", "measure.steps=2.5"], ["measure.steps=2.5", "a whole number from 1, or auto"]),
        (["recipe=tiny_llama_peft", "measure.warmup=many"], ["measure.warmup=many", "a whole number"]),
        (["recipe=tiny_llama_peft", "measure.steps=null"], ["measure.steps=null", "a whole number from 1, or auto"]),
        (["recipe=tiny_llama_peft", "measure.half_width=5"], ["measure.half_width=5", "a fraction"]),
        (["recipe=tiny_llama_peft", "measure.half_width=0.01"], ["measure.half_width=0.01", "measure.steps=auto"]),
        (["recipe=tiny_llama_peft", "measure.max_steps=50"], ["measure.max_steps=50", "measure.steps=auto"]),
        (["recipe=tiny_llama_peft", "measure.steps=0"], ["measure.steps=0", "a whole number from 1"]),
        (["recipe=tiny_llama_peft", "measure.warmup=-1"], ["measure.warmup=-1", "0 or more"]),
        (["recipe=tiny_llama_peft", "cc=of"], ["cc=of", "Did you mean off?"]),
        (["recipe=tiny_llama_peft", "data.lengths=long"], ["data.lengths=long", "fixed, squad"]),
        (["recipe=tiny_llama_peft", "train.optimizer.lrr=1"], ["train.optimizer.lrr", "optimizer.lr?", "+train."]),
        (["recipe=tiny_llama_peft", "train=1"], ["train=1", "train.optimizer.lr"]),
        (["recipe=tiny_llama_peft", "data=pydoc,squad"], ["one value a key"]),
        (["recipe=tiny_llama_peft", "--steps"], ["--steps", "key=value"]),
        (["recipe=tiny_llama_peft", "data=jsonl"], ["data.path=FILE"]),
        (["recipe=tiny_llama_peft", "data.path=x"], ["data=jsonl"]),
        (["recipe=tiny_llama_peft", "data=recipe", "data.seq_len=64"], ["data.seq_len=64", "data=pydoc"]),
        (["recipe=tiny_llama_peft", "data.lengths=squad"], ["data.lengths=squad", "data=synthetic"]),
        (["recipe=tiny_llama_peft", "data.question=q"], ["data.question=q", "data=jsonl"]),
        (["recipe=tiny_llama_peft", "recipe=tiny_llama_sft"], ["given 2 times"]),
        (["recipe=tiny_llama_peft", "cc=True"], ["cc=True", "auto, emulated, off, on, unverified"]),
        (["recipe=tiny_llama_peft", "cc=1"], ["cc=1", "auto, emulated, off, on, unverified"]),
        (["recipe=my"], ["recipe=my", "ends in .yaml"]),
        (["tiny_llama_peft"], ["Did you mean recipe=tiny_llama_peft?"]),
        (["recipe=tiny_llama_peft", "steps=5"], ["Did you mean measure.steps?"]),
        (["recipe=tiny_llama_peft", "dry_run=treu"], ["dry_run=treu", "true or false"]),
        (["recipe=tiny_llama_peft", "cc=[on]"], ["cc=NAME"]),
        (["recipe=tiny_llama_peft", "+train.x=${nothing}"], ["+train.x=${nothing} refers to nothing, which does not"]),
        (["recipe=tiny_llama_peft", "run_root=${oc.env:UNSET_}"], ["run_root=${oc.env:UNSET_} refers to UNSET_,"]),
        (["recipe=tiny_llama_peft", "data.path=a=b"], ["data.path=a=b", "quotes"]),
        (["recipe=tiny_llama_peft", "train.model={", "dry_run=true"], ["cannot read train.model={: put"]),
        (["recipe=tiny_llama_peft", "allow_targets=x"], ["allow_targets=x: allowed is a list in brackets, [a,b]"]),
        (["recipe=tiny_llama_peft", "allow_targets={a:1}"], ["allow_targets={a:1}: allowed is a list in brackets"]),
        (["recipe=tiny_llama_peft", "track.project=[a]"], ["track.project=[a]: allowed is text"]),
        (["recipe=tiny_llama_peft", "data.lengths=[1]"], ["data.lengths=[1]: allowed is fixed, squad"]),
        (["recipe=tiny_llama_peft", "data.seq_len=x"], ["data.seq_len=x: allowed is a whole number"]),
        (["recipe=tiny_llama_peft", "run_root=???"], ["run_root=???: allowed is text"]),
        (["recipe=tiny_llama_peft", "~measure.steps"], ["~measure.steps: allowed is measure.steps=VALUE"]),
        (["recipe=tiny_llama_peft", "+measure=seed"], ["+measure=seed: allowed is measure=VALUE"]),
        (["recipe=tiny_llama_peft", "cc@train=off"], ["cc@train=off: allowed is KEY=VALUE, the key without @"]),
        (["recipe=tiny_llama_peft", "train.x@y=3"], ["train.x@y=3: allowed is KEY=VALUE, the key without @"]),
        (["recipe=tiny_llama_peft", "measure@=seed"], ["measure@=seed: allowed is KEY=VALUE, the key without @"]),
        (["recipe=tiny_llama_peft", "+=3"], ["+=3: allowed is KEY=VALUE"]),
        (["recipe=tiny_llama_peft", "~"], ["~: allowed is KEY=VALUE"]),
        (
            ["recipe=tiny_llama_peft", "measure.warmup=5", "measure.warmup=abc"],
            ["measure.warmup=abc: allowed is a whole"],
        ),
        (["recipe=tiny_llama_peft", "train.optimizer.lr-x=1"], ["the recipe has no key train.optimizer.lr-x."]),
        (
            ["recipe=tiny_llama_peft", "train.model={config:[1]}"],
            ["{config:[1]}: it has a list where the recipe has a mapping"],
        ),
        (["recipe=tiny_llama_peft", "+foo=3"], ["unknown key foo."]),
        (["recipe=tiny_llama_peft", "=3"], ["got =3: settings are written key=value"]),
        (
            ["recipe=tiny_llama_peft", "~train.optimizer.lrr"],
            ["no key train.optimizer.lrr. Did you mean train.optimizer.lr?"],
        ),
        (["recipe=tiny_llama_peft", "~train.optimizer.lr=4"], ["train.optimizer.lr is 0.01: to drop it write ~train."]),
        (
            ["recipe=tiny_llama_peft", "+train.optimizer.lr=4"],
            ["the key train.optimizer.lr already: write train.optimizer.lr"],
        ),
        (["recipe=tiny_llama_peft", "train.optimizer=[1]"], ["train.optimizer=[1]: allowed is a mapping, {a:1}"]),
        (["recipe=tiny_llama_peft", "data=medpix"], ["medpix", "LLM recipe"]),
        (["recipe=tiny_gemma_peft", "data=squad"], ["squad", "VLM recipe"]),
        (["recipe=tiny_llama_peft", "weights=pretrained"], ["weights.path=DIRECTORY"]),
        (["recipe=tiny_llama_peft", "weights.path=x"], ["weights=pretrained"]),
        (["recipe=tiny_llama_peft", "launch.nproc_per_node=0"], ["launch.nproc_per_node=0", "1 or more"]),
    ],
)
def test_a_wrong_request_is_refused_in_words_that_help(arguments, words):
    message = refusal(*arguments)
    assert all(word in message for word in words), message
    assert message.isprintable()


EMULATED = ["recipe=tiny_llama_peft", "cc=emulated", "tolls=b300", "measure.steps=64"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (EMULATED[:2], ["cc=emulated", "add tolls=b300"]),
        (["recipe=tiny_llama_peft", "tolls=b300"], ["tolls=", "cc=emulated only, got cc=auto"]),
        (["recipe=tiny_llama_peft", "cc=off", "tolls=b300"], ["tolls=", "cc=emulated only, got cc=off"]),
        (["recipe=tiny_llama_peft", "cc.blocks=4"], ["cc.blocks=4", "cc=emulated only, got cc=auto"]),
        ([*EMULATED, "cc.blocks=1"], ["cc.blocks=1", "2 or more"]),
        ([*EMULATED, "cc.blocks=many"], ["cc.blocks=many", "a whole number"]),
        ([*EMULATED, "tolls=hopper"], ["given 2 times", "tolls=b300, tolls=hopper"]),
        ([*EMULATED[:2], "tolls=b30"], ["b30", "Did you mean b300?"]),
        ([*EMULATED[:2], "tolls="], ["no toll profile", "takes b300, h100, hopper"]),
        ([*EMULATED[:2], "tolls=no/such.yaml"], ["no/such.yaml", "cannot be read"]),
        ([*EMULATED[:2], "tolls=${oc.env:HF_TOKEN}"], ["HF_TOKEN"]),
        ([*EMULATED, "+tolls=b300"], ["+tolls=b300", "tolls=NAME|FILE"]),
        ([*EMULATED, "~tolls"], ["~tolls", "tolls=NAME|FILE"]),
        ([*EMULATED, "tolls@train=b300"], ["tolls@train=b300", "tolls=NAME|FILE"]),
        ([*EMULATED, "tolls.tolls.launch_us.value=1"], ["tolls.tolls.launch_us.value=1", "copy a profile"]),
        ([*EMULATED[:3], "measure.steps=auto"], ["measure.steps=auto", "cc=emulated"]),
        ([*EMULATED, "measure=seed"], ["measure=seed", "cc=emulated"]),
        ([*EMULATED[:3], "measure.steps=63"], ["measure.steps=63", "cc.blocks=8", "64 or more, or cc.blocks=7"]),
        ([*EMULATED[:3], "measure.steps=15"], ["measure.steps=15", "64 or more"]),
        ([*EMULATED[:3], "cc.blocks=3", "measure.steps=23"], ["24 or more (36 to be told steady)"]),
    ],
)
def test_what_does_not_go_with_emulation_is_refused_in_words_that_help(arguments, words):
    message = refusal(*arguments)
    assert all(word in message for word in words), message


def test_no_number_of_blocks_is_advised_that_leaves_too_few_steps_to_be_told_steady():
    assert ", or cc.blocks=" not in refusal(*EMULATED[:3], "cc.blocks=3", "measure.steps=23")


def test_the_profile_is_resolved_before_the_run():
    config = composed(*EMULATED)
    assert config.cc.mode is CcMode.emulated
    assert config.tolls == load_profile("b300").to_dict()
    assert composed(*EMULATED, "cc.blocks=4", "measure.steps=32").cc.blocks == 4


def test_a_profile_by_path_never_reaches_hydra(tmp_path):
    path = tmp_path / "my (own) ${profile},=.yaml"
    path.write_text((CONF / "tolls" / "h100.yaml").read_text().replace("name: h100", 'name: "${oc.env:HOME}"'))
    assert composed(*EMULATED[:2], EMULATED[3], f"tolls={path}").tolls["name"] == "${oc.env:HOME}"


def test_crossings_are_counted_where_asked():
    assert composed("recipe=tiny_llama_peft").measure.crossings is False
    assert composed("recipe=tiny_llama_peft", "measure.crossings=true").measure.crossings is True


@pytest.mark.parametrize(
    ("content", "because"),
    [
        (b"", "it is empty"),
        (b"[1, 2]", "it holds [1, 2]; allowed is a mapping of sections"),
        (b"x: 1\na: [", "is no YAML: line 2, "),
        (b"a: \xff", "no text in UTF-8"),
        (b"a: \x1b[31m", "special characters are not allowed"),
        (b"recipe: os.system\nmodel: {}\nstep_scheduler: {}\n", "its key recipe is 'system'"),
        (b"x: 1\n", "its key recipe is ''"),
        (b"recipe: {name: x, file: x.yaml}\n", "is no AutoModel recipe, but cctrain's settings for one: recipe="),
        (b"- 2026-01-01\n", "it holds [datetime.date(2026, 1, 1)]; allowed is a mapping of sections"),
        (b"&a [*a]", "it holds [[...]]; allowed is a mapping of sections"),
        (b"[" * 3000 + b"]" * 3000, "it is nested too deeply"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name_in_one_line(tmp_path, content, because):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    message = refusal(f"recipe={path}")
    assert str(path) in message
    assert because in message
    assert message.isprintable()


def test_a_directory_is_no_recipe(tmp_path):
    assert "it is a directory, not a file" in refusal(f"recipe={tmp_path}/")


def test_the_recipe_hash_is_of_what_is_trained_not_of_how_long_or_where():
    def hashed(*arguments: str) -> str:
        return recipe_hash(composed("recipe=tiny_llama_peft", *arguments).train)

    same = hashed()
    assert hashed("measure.steps=7", "run_root=/elsewhere", "cc=on") == same
    assert hashed("cc=emulated", "tolls=b300", "measure.steps=64", "measure.crossings=true") == same
    assert hashed("train.step_scheduler.local_batch_size=1") != same
    assert hashed("data=synthetic") != same


def test_the_recipe_hash_does_not_depend_on_where_a_file_lies(tmp_path):
    hashes = set()
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "mine.jsonl"
        hashes.add(recipe_hash(composed("recipe=tiny_llama_peft", "data=jsonl", f"data.path={path}").train))
    assert len(hashes) == 1


def test_the_identity_names_the_model_without_the_place_it_lies_at():
    def model(*arguments: str) -> str:
        config = composed("recipe=tiny_llama_peft", *arguments)
        layout = Layout(world=2, data=2, tensor=1, pipeline=1, context=1)
        return identity(config, layout, versions={}, gpus=["cpu"], num_gpus=2)["model"]

    assert model() == "models/tiny-llama"
    assert {model("weights=pretrained", f"weights.path=/{place}/llama") for place in ("here", "there")} == {"llama"}
    assert model("weights=pretrained", "weights.path=meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"
    assert model("+train.model.config.num_hidden_layers=1") == "models/tiny-llama, num_hidden_layers 1"
    nested = model("+train.model.config.text_config.num_hidden_layers=1")
    assert nested == "models/tiny-llama, text_config.num_hidden_layers 1"
