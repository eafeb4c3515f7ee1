"""What a recipe may import. AutoModel's ConfigNode imports every `_target_` and `*_fn` it meets while it is being
built, from any module on the path, so a recipe file is code; the names below are what recipes need, and everything
else is refused before AutoModel sees it.

Names only, never whole modules: `torch.load` and `torch.hub.load` live under `torch` too. The names are those used by
the LLM and VLM fine-tuning examples of nemo-automodel 0.7.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cctrain.errors import RequestError
from cctrain.request.nearest import did_you_mean

_NEMO = "nemo_automodel"
_DATASETS = f"{_NEMO}.components.datasets"

ALLOWED_TARGETS = frozenset(
    [
        *(
            f"{_NEMO}.{cls}.{how}"
            for cls in (
                "NeMoAutoModelForCausalLM",
                "NeMoAutoModelForImageTextToText",
                "NeMoAutoModelForMultimodalLM",
            )
            for how in ("from_pretrained", "from_config")
        ),
        f"{_NEMO}.NeMoAutoTokenizer.from_pretrained",
        "transformers.AutoConfig.from_pretrained",
        "transformers.AutoProcessor.from_pretrained",
        "transformers.AutoTokenizer.from_pretrained",
        f"{_NEMO}.components._peft.lora.PeftConfig",
        f"{_NEMO}.components.models.common.BackendConfig",
        f"{_NEMO}.components.models.common.utils.BackendConfig",
        f"{_NEMO}.components.models.common.utils.TEFp8Config",
        f"{_NEMO}.components.training.rng.StatefulRNG",
        f"{_NEMO}.components.loss.masked_ce.MaskedCrossEntropy",
        f"{_NEMO}.components.loss.chunked_ce.ChunkedCrossEntropy",
        f"{_NEMO}.components.loss.linear_ce.FusedLinearCrossEntropy",
        f"{_NEMO}.components.loss.te_parallel_ce.TEParallelCrossEntropy",
        f"{_NEMO}.components.models.gemma4_moe.loss.Gemma4TensorParallelFusedLinearCrossEntropy",
        f"{_NEMO}.components.distributed.config.FSDP2Config",
        f"{_NEMO}.components.distributed.pipelining.config.PipelineConfig",
        f"{_NEMO}.components.quantization.qat.QATConfig",
        "torch.distributed.fsdp.MixedPrecisionPolicy",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "flashoptim.FlashAdamW",
        "transformer_engine.pytorch.optimizers.FusedAdam",
        "transformer_engine.pytorch.optimizers.fused_adam.FusedAdam",
        "torch.utils.data.DataLoader",
        "torchdata.stateful_dataloader.StatefulDataLoader",
        *(
            f"{_DATASETS}.utils.{name}"
            for name in ("default_collater", "packed_sequence_thd_collater", "packed_sequence_thd_collater_vlm")
        ),
        *(
            f"{_DATASETS}.llm.{name}"
            for name in (
                "agent_chat.make_agent_chat_dataset",
                "chat_dataset.ChatDataset",
                "column_mapped_text_instruction_dataset.ColumnMappedTextInstructionDataset",
                "column_mapped_text_instruction_iterable_dataset.ColumnMappedTextInstructionIterableDataset",
                "hellaswag.HellaSwag",
                "mock.build_unpacked_dataset",
                "mock_iterable_dataset.MockIterableDataset",
                "mock_packed.build_packed_dataset",
                "squad.make_squad_dataset",
                "xlam.make_xlam_dataset",
            )
        ),
        *(
            f"{_DATASETS}.vlm.{name}"
            for name in (
                "datasets.make_cord_v2_dataset",
                "datasets.make_medpix_dataset",
                "datasets.make_meta_dataset",
                "datasets.make_rdr_dataset",
                "datasets.make_shopify_product_catalogue_dataset",
                "datasets.make_tulu3_dataset",
                "datasets.make_tulu3_magicoder_text_mix_dataset",
                "mock.build_mock_vlm_dataset",
                "collate_fns.default_collate_fn",
                "collate_fns.gemma4_inject_thinking_prefix",
                "collate_fns.gemma4_prefix_collate_fn",
                "collate_fns.kimi_k25_vl_collate_fn",
                "collate_fns.kimi_vl_collate_fn",
                "collate_fns.llava_onevision_collate_fn",
                "collate_fns.phi4_mm_collate_fn",
                "collate_fns.qwen2_5_collate_fn",
                "collate_fns.qwen3_omni_collate_fn",
            )
        ),
    ]
)

_SECRET_NAME = re.compile(r"token|secret|passw|credential|api_?key|auth|_key$|^key", re.IGNORECASE)
_INTERPOLATION = re.compile(r"\$\{(?:oc\.env:)?\s*([^,}]+)|\$([A-Za-z_][A-Za-z0-9_.]*)")
_FALSE = (None, False, 0, "false", "False", "none", "None", "0", "")


def check_recipe(recipe: dict[str, Any], allow_targets: Iterable[str] = ()) -> None:
    """Raise RequestError at the first key of `recipe` that would run code it may not, or read a secret."""
    allowed = ALLOWED_TARGETS | set(allow_targets)
    for path, key, value in _walk(recipe, "train"):
        if key == "_target_" or (key.endswith("_fn") and not isinstance(value, (dict, list))):
            _check_target(path, value, allowed)
        elif key == "trust_remote_code" and value not in _FALSE and key not in allowed:
            raise RequestError(
                f"{path}={value}: it runs code that the model's repository holds; allowed is false. Override "
                f"{path}=false, or if you trust it add 'allow_targets=[trust_remote_code]'"
            )
        elif key == "attn_implementation" and isinstance(value, str) and "/" in value:
            raise RequestError(f"{path}={value}: a kernel fetched from the hub is code; allowed is a built-in: sdpa")
        elif key == "packing_strategy" and value not in ("thd", "neat", None):
            raise RequestError(f"{path}={value}: allowed is thd or neat")
        elif isinstance(value, str):
            _check_interpolation(path, value)


def refuse_secret_interpolations(arguments: Iterable[str]) -> None:
    """Raise RequestError for an override that would copy a secret of the environment into the run's files."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        _check_interpolation(key, value)


def _walk(node: Any, path: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{path}.{name}", str(name), value
            yield from _walk(value, f"{path}.{name}", str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            if isinstance(value, str):
                yield f"{path}[{index}]", "", value
            yield from _walk(value, f"{path}[{index}]")


def _check_target(path: str, value: Any, allowed: frozenset[str] | set[str]) -> None:
    if value is None or (isinstance(value, str) and value in allowed):
        return
    raise RequestError(
        f"{path}={value}: not on the list of names a recipe may import (cctrain/request/allowed.py)."
        f"{did_you_mean(str(value), allowed)} If you trust this code, add 'allow_targets=[{value}]'"
    )


def _check_interpolation(path: str, value: str) -> None:
    for match in _INTERPOLATION.finditer(value):
        name = (match.group(1) or match.group(2)).strip()
        if _SECRET_NAME.search(name):
            raise RequestError(
                f"{path} reads the environment variable {name}, which looks like a secret and would end up in logs; "
                "libraries read their keys from the environment by themselves: remove it"
            )
