"""The recipe's data sections for each `data=`.

Every source ends as a data set class of AutoModel's own that reads files, so that the recipe written into the run
directory also runs with AutoModel alone, and ranks that share a sample (tensor parallel) see the same one, which those
of AutoModel's mock data do not. The files are written by `data_files.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cctrain.config import DataConfig, DataKind, Lengths, RecipeConfig
from cctrain.errors import RequestError

DEFAULT_SEQ_LEN = 512
_LLM = "nemo_automodel.components.datasets.llm"
_VLM = "nemo_automodel.components.datasets.vlm"
_LOADER = "torchdata.stateful_dataloader.StatefulDataLoader"


def row_tokens(recipe: Mapping[str, Any], seq_len: int | None, packing: int) -> int:
    """The longest that a row can be, as far as the settings say: `packing` is the tokens of a packed row, `seq_len`
    what data.seq_len says."""
    dataset = recipe.get("dataset") or {}
    of_recipe = str(dataset.get("seq_len") or dataset.get("seq_length"))
    return packing or seq_len or (int(of_recipe) if of_recipe.isdecimal() else DEFAULT_SEQ_LEN)


def put_data(recipe: dict[str, Any], data: DataConfig, entry: RecipeConfig, *, is_vlm: bool) -> None:
    """Replace the recipe's data sections by those of `data`. Raises RequestError where they do not go together."""
    if is_vlm and data.kind is DataKind.squad:
        raise RequestError(f"data=squad is text for LLM recipes; {entry.name} is a VLM recipe: use medpix, pydoc")
    if not is_vlm and data.kind is DataKind.medpix:
        raise RequestError(f"data=medpix holds images; {entry.name} is an LLM recipe: use squad, pydoc, jsonl")
    _refuse_unread(data)
    if data.image and not is_vlm:
        raise RequestError(f"data.image={data.image} is read by VLM recipes only")
    if data.kind is not DataKind.recipe:
        for key in [key for key in recipe if key.startswith("validation_")]:
            del recipe[key]
        (_put_vlm if is_vlm else _put_llm)(recipe, data)
    _put_text_model(recipe, entry, is_vlm=is_vlm)


def _refuse_unread(data: DataConfig) -> None:
    """A setting that this kind of data does not read would stand in the record as if it had been used."""
    defaults, jsonl = DataConfig(), (DataKind.jsonl,)
    read_by: dict[str, tuple[DataKind, ...]] = {
        "seq_len": tuple(kind for kind in DataKind if kind is not DataKind.recipe),
        "lengths": (DataKind.synthetic,),
        **{"question": jsonl, "answer": jsonl, "context": jsonl, "image": jsonl},
    }
    for key, kinds in read_by.items():
        value = getattr(data, key)
        if value != getattr(defaults, key) and data.kind not in kinds:
            names = ", ".join(f"data={kind.value}" for kind in kinds)
            raise RequestError(f"data.{key}={getattr(value, 'value', value)} is read with {names} only")


def _put_llm(recipe: dict[str, Any], data: DataConfig) -> None:
    kept = {key: value for key, value in recipe.get("dataloader", {}).items() if key in ("shuffle", "pin_memory")}
    collate = "nemo_automodel.components.datasets.utils.default_collater"
    recipe["dataloader"] = {"_target_": _LOADER, "collate_fn": collate, **kept}
    seq_len = data.seq_len or (DEFAULT_SEQ_LEN if data.kind is DataKind.pydoc or _is_fixed(data) else None)
    # AutoModel counts the token that becomes the last label: one more than the model sees.
    cut = {"seq_length": seq_len + 1, "truncation": True} if seq_len else {}
    if data.kind is DataKind.squad:
        squad = {"_target_": f"{_LLM}.squad.make_squad_dataset", "dataset_name": "rajpurkar/squad", "split": "train"}
        recipe["dataset"] = squad | cut
        return
    columns, path = {"question": "question", "answer": "answer"}, f"{{run_dir}}/data/{data.kind.value}.jsonl"
    if data.kind is DataKind.jsonl:
        path = str(Path(str(data.path)).expanduser().resolve())
        columns = {"question": data.question, "answer": data.answer}
        columns |= {"context": data.context} if data.context else {}
    recipe["dataset"] = {
        "_target_": f"{_LLM}.column_mapped_text_instruction_dataset.ColumnMappedTextInstructionDataset",
        "path_or_dataset_id": path,
        "column_mapping": columns,
        **cut,
    }


def _put_vlm(recipe: dict[str, Any], data: DataConfig) -> None:
    collate: dict[str, Any] = dict((recipe.get("dataloader") or {}).get("collate_fn") or {})
    collate.setdefault("_target_", f"{_VLM}.collate_fns.default_collate_fn")
    if data.seq_len or _is_fixed(data):  # with a cut, AutoModel's collate also fills every sample up to it
        collate["max_length"] = (data.seq_len or DEFAULT_SEQ_LEN) + 1
    recipe["dataloader"] = {**recipe.get("dataloader", {}), "_target_": _LOADER, "collate_fn": collate}
    if data.kind is DataKind.medpix:
        medpix = {"path_or_dataset": "mmoukouba/MedPix-VQA", "split": "train[:1000]"}
        recipe["dataset"] = {"_target_": f"{_VLM}.datasets.make_medpix_dataset", **medpix}
    else:
        meta = "{run_dir}/data/meta.json"
        recipe["dataset"] = {"_target_": f"{_VLM}.datasets.make_meta_dataset", "path_or_dataset": meta}


def check_packing(recipe: Mapping[str, Any], data: DataConfig) -> None:
    """Raises RequestError where no made-up sample fits into a packed row, of which AutoModel would drop all."""
    size = (recipe.get("packed_sequence") or {}).get("packed_sequence_size")
    length = data.seq_len or DEFAULT_SEQ_LEN
    if _is_fixed(data) and isinstance(size, int) and 0 < size < length:
        raise RequestError(
            f"train.packed_sequence.packed_sequence_size={size}: samples of data=synthetic have {length} tokens and "
            f"fit into no row; set data.seq_len to {size} or fewer, or data.lengths=squad"
        )


def _is_fixed(data: DataConfig) -> bool:
    return data.kind is DataKind.synthetic and data.lengths is Lengths.fixed


def _put_text_model(recipe: dict[str, Any], entry: RecipeConfig, *, is_vlm: bool) -> None:
    """Random weights come with no tokenizer of their own: use the small one beside the architecture."""
    is_random = str(recipe["model"].get("_target_", "")).endswith(".from_config")
    if not is_random or not entry.text:
        return
    source = {"pretrained_model_name_or_path": f"{{recipes}}/{entry.text}"}
    if is_vlm:
        processor = recipe.get("processor") or {}
        recipe["processor"] = {**processor, "_target_": "transformers.AutoProcessor.from_pretrained", **source}
    elif "path_or_dataset_id" in recipe.get("dataset", {}) or "dataset_name" in recipe.get("dataset", {}):
        recipe["dataset"]["tokenizer"] = source
