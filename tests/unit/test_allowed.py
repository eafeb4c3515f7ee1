"""A recipe is code to AutoModel: what may be imported, and what is refused before it is."""

import pytest

from cctrain.errors import RequestError
from cctrain.request.allowed import check_recipe, refuse_secret_interpolations

GOOD = {"_target_": "torch.optim.AdamW", "lr": 1e-4}


@pytest.mark.parametrize(
    ("recipe", "path"),
    [
        ({"optimizer": {"_target_": "os.system"}}, "train.optimizer._target_"),
        ({"optimizer": {"_target_": "torch.load"}}, "train.optimizer._target_"),
        ({"optimizer": {"_target_": "torch.hub.load"}}, "train.optimizer._target_"),
        ({"optimizer": {"_target_": "evil.py:run"}}, "train.optimizer._target_"),
        ({"optimizer": {"_target_": ["os.system"]}}, "train.optimizer._target_"),
        ({"dataloader": {"collate_fn": "subprocess.run"}}, "train.dataloader.collate_fn"),
        ({"a": [{"b": [{"_target_": "os.system"}]}]}, "train.a[0].b[0]._target_"),
        ({"dataset": {"tokenizer": {"_target_": "builtins.eval"}}}, "train.dataset.tokenizer._target_"),
        ({"model": {"trust_remote_code": True}}, "train.model.trust_remote_code"),
        ({"model": {"trust_remote_code": "true"}}, "train.model.trust_remote_code"),
        ({"model": {"trust_remote_code": 1}}, "train.model.trust_remote_code"),
        ({"model": {"attn_implementation": "someone/kernel"}}, "train.model.attn_implementation"),
        ({"packed_sequence": {"packing_strategy": "evil.Packing"}}, "train.packed_sequence.packing_strategy"),
        ({"distributed": {"tp_plan": "mine.plan"}}, "train.distributed.tp_plan"),
        (
            {"distributed": {"megatron_fsdp_unit_modules": ["mine.Module"]}},
            "train.distributed.megatron_fsdp_unit_modules",
        ),
        ({"model": {"pretrained_model_name_or_path": "nvidia/some-model"}}, "train.model"),
        (
            {"model": {"config": {"pretrained_model_name_or_path": "nvidia/x", "trust_remote_code": False}}},
            "train.model",
        ),
        ({"model": {"weights_only": False}}, "train.model.weights_only"),
        ({"model": {"_attn_implementation": "someone/kernel"}}, "train.model._attn_implementation"),
        ({"model": {"pretrained_model_name_or_path": "${NOPE,nvidia/evil}"}}, "train.model.pretrained_model_name"),
        ({"optimizer": "{'_target_': 'os.system'}"}, "train.optimizer"),
        ({"dataloader": {"dataset": "{'_target_': 'os.system', 'command': 'true'}"}}, "train.dataloader.dataset"),
        ({"model": {"attn_implementation": "'org\\x2fkernel'"}}, "train.model.attn_implementation"),
        ({"compile": {"options": {"cpp.cxx": "(None, '/bin/sh')"}}}, "train.compile.options.cpp.cxx"),
        ({"note": "$HF_TO${X,KEN}"}, "train.note"),
        ({"note": "$${X,HF_TO}KEN"}, "train.note"),
        ({"note": "'\\x24{HF_\\x54OKEN}'"}, "train.note"),
        ({"note": "{'_target_': 'os.system', 'x': ${X,1}}"}, "train.note"),
        ({"model": {"attn_implementation": {"text_config": "someone/kernel"}}}, "train.model.attn_implementation"),
        ({"model": {"use_kernels": True}}, "train.model.use_kernels"),
        ({"checkpoint": {"allow_legacy_pickle_restore": "true"}}, "train.checkpoint.allow_legacy_pickle_restore"),
        ({"optimizer": {"_target_": [["os.system"]]}}, "train.optimizer._target_"),
        ({"note": "evil/${X_UNSET,$HF_}TOKEN"}, "train.note"),
        ({"note": "${DB_PASS}"}, "train.note"),
        ({"note": "${oc.env:HF_TOKEN}"}, "train.note"),
        ({"note": ["x", "$WANDB_API_KEY"]}, "train.note[1]"),
        ({"note": "a ${AWS_SECRET_ACCESS_KEY,none}"}, "train.note"),
    ],
)
def test_code_and_secrets_are_refused_by_path(recipe, path):
    with pytest.raises(RequestError) as caught:
        check_recipe(recipe)
    assert str(caught.value).startswith(path)


def test_what_recipes_need_is_allowed():
    check_recipe(
        {
            "optimizer": GOOD,
            "model": {
                "pretrained_model_name_or_path": "nvidia/some-model",
                "trust_remote_code": False,
                "attn_implementation": "sdpa",
            },
            "loss_fn": {"_target_": "nemo_automodel.components.loss.masked_ce.MaskedCrossEntropy"},
            "dataset": {"path": "${oc.env:DATA_DIR}/x"},
            "packed_sequence": {"packing_strategy": "neat"},
            "notes": ["(0.9, 0.95)", "1e-5", "train[:1000]", "${HOME}/a/${USER}", "*_proj", "none"],
        }
    )


def test_the_user_extends_the_list_by_name():
    recipe = {"optimizer": {"_target_": "mine.Optimizer"}, "model": {"trust_remote_code": True}}
    with pytest.raises(RequestError, match=r"allow_targets=\[mine.Optimizer\]"):
        check_recipe(recipe)
    check_recipe(recipe, ["mine.Optimizer", "trust_remote_code"])


def test_a_secret_on_the_command_line_is_refused_unread():
    with pytest.raises(RequestError, match="HF_TOKEN"):
        refuse_secret_interpolations(["data.path=${oc.env:HF_TOKEN}"])
    refuse_secret_interpolations(["data.path=${oc.env:HOME}/x.jsonl"])


@pytest.mark.parametrize(
    "argument", ["+train.model.token=abc", "data.path=https://me:pw@host/x", f"run_root=hf_{'a1' * 12}"]
)
def test_a_secret_written_out_on_the_command_line_is_refused_unrepeated(argument):
    with pytest.raises(RequestError) as caught:
        refuse_secret_interpolations([argument])
    assert argument.partition("=")[0] in str(caught.value)
    assert argument.partition("=")[2] not in str(caught.value)


def test_a_secret_written_out_in_a_recipe_is_refused_by_path():
    with pytest.raises(RequestError, match=r"train\.dataset\.api_key"):
        check_recipe({"dataset": {"api_key": "abc"}})
