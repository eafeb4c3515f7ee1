"""Training data: the recipe's dataset sections for each `data=`, and the files that the run directory then holds.

Every source ends as a data set class of AutoModel's own, so that the recipe written into the run directory also runs
with AutoModel alone. `pydoc` is real text that needs no download: the documentation topics that come with Python.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cctrain.config import DataConfig, DataKind, Lengths, RecipeConfig
from cctrain.errors import RequestError
from cctrain.packaged import RECIPES
from cctrain.request.nearest import did_you_mean

_LLM = "nemo_automodel.components.datasets.llm"
_VLM = "nemo_automodel.components.datasets.vlm"
DEFAULT_SEQ_LEN = 512
_ENDLESS = 10**9
_SMALLEST_VOCAB = 32_000
_CHUNK_CHARACTERS = 600
"""Length of a pydoc answer: about 200 tokens of the small tokenizers, so that one topic gives several samples."""


def put_data(recipe: dict[str, Any], data: DataConfig, entry: RecipeConfig, *, is_vlm: bool) -> None:
    """Replace the recipe's data sections by those of `data`. Raises RequestError where they do not go together."""
    if is_vlm and data.kind is DataKind.squad:
        raise RequestError(f"data=squad is text for LLM recipes; {entry.name} is a VLM recipe: use medpix, pydoc, synthetic")
    if not is_vlm and data.kind is DataKind.medpix:
        raise RequestError(f"data=medpix holds images; {entry.name} is an LLM recipe: use squad, pydoc, synthetic, jsonl")
    if data.image and (not is_vlm or data.kind is not DataKind.jsonl):
        raise RequestError(f"data.image={data.image} is only read with data=jsonl by VLM recipes")
    if data.kind is not DataKind.recipe:
        for key in [key for key in recipe if key.startswith("validation_")]:
            del recipe[key]
        (_put_vlm if is_vlm else _put_llm)(recipe, data, _vocab_size(entry))
    _put_text_model(recipe, entry, is_vlm=is_vlm)


def _put_llm(recipe: dict[str, Any], data: DataConfig, vocab_size: int) -> None:
    loader = {key: value for key, value in recipe.get("dataloader", {}).items() if key in ("shuffle", "pin_memory")}
    recipe["dataloader"] = {
        "_target_": "torchdata.stateful_dataloader.StatefulDataLoader",
        "collate_fn": "nemo_automodel.components.datasets.utils.default_collater",
        **loader,
    }
    if data.kind is DataKind.synthetic and data.lengths is Lengths.fixed:
        # The loader, not the data set, makes the batches: those of the data set share memory and cannot be pinned.
        recipe["dataset"] = {
            "_target_": f"{_LLM}.mock_iterable_dataset.MockIterableDataset",
            "vocab_size": vocab_size,
            "seq_len": data.seq_len or DEFAULT_SEQ_LEN,
            "num_samples": _ENDLESS,
            "batch_size": 1,
            "exclude_token_ids": [0],  # the loader would take it for padding
        }
        recipe["dataloader"].pop("shuffle", None)
    elif data.kind is DataKind.squad:
        recipe["dataset"] = {"_target_": f"{_LLM}.squad.make_squad_dataset", "dataset_name": "rajpurkar/squad"}
        recipe["dataset"] |= {"split": "train", **_cut(data.seq_len)}
    else:
        recipe["dataset"] = {
            "_target_": f"{_LLM}.column_mapped_text_instruction_dataset.ColumnMappedTextInstructionDataset",
            "path_or_dataset_id": _text_file(data),
            "column_mapping": _columns(data),
            **_cut(data.seq_len or (None if data.kind is DataKind.jsonl else DEFAULT_SEQ_LEN)),
        }


def _text_file(data: DataConfig) -> str:
    if data.kind is DataKind.jsonl:
        return str(Path(str(data.path)).expanduser().resolve())
    return f"{{run_dir}}/data/{data.kind.value}.jsonl"


def _columns(data: DataConfig) -> dict[str, str]:
    if data.kind is not DataKind.jsonl:
        return {"question": "question", "answer": "answer"}
    return {"question": data.question, "answer": data.answer} | ({"context": data.context} if data.context else {})


def _cut(seq_len: int | None) -> dict[str, Any]:
    return {"seq_length": seq_len, "truncation": True} if seq_len else {}


def _put_vlm(recipe: dict[str, Any], data: DataConfig, vocab_size: int) -> None:
    raise NotImplementedError


def _vocab_size(entry: RecipeConfig) -> int:
    """Of the architecture packaged with the recipe; else a size that every current language model exceeds."""
    if not entry.model:
        return _SMALLEST_VOCAB
    config = json.loads((RECIPES / entry.model / "config.json").read_text(encoding="utf-8"))
    return int(config.get("text_config", config)["vocab_size"])


def _put_text_model(recipe: dict[str, Any], entry: RecipeConfig, *, is_vlm: bool) -> None:
    """Random weights come with no tokenizer of their own: use the small one beside the architecture."""
    is_random = str(recipe["model"].get("_target_", "")).endswith(".from_config")
    if not is_random or not entry.text:
        return
    source = {"pretrained_model_name_or_path": f"{{recipes}}/{entry.text}"}
    if is_vlm:
        recipe["processor"] = {"_target_": "transformers.AutoProcessor.from_pretrained", **source}
    elif isinstance(recipe.get("dataset"), dict):
        recipe["dataset"]["tokenizer"] = source


def prepare_data(data: DataConfig, run_dir: Path) -> None:
    """Write the files that the recipe's data sections name under `run_dir`/data."""
    if data.kind is DataKind.pydoc:
        samples = pydoc_samples()
    elif data.kind is DataKind.synthetic and data.lengths is Lengths.squad:
        samples = squad_like_samples()
    else:
        return
    folder = run_dir / "data"
    folder.mkdir()
    with (folder / f"{data.kind.value}.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample) + "\n" for sample in samples)


def pydoc_samples() -> Iterator[dict[str, str]]:
    """Question (the topic) and answer (a piece of its text) from the documentation of the Python that runs this."""
    from pydoc_data.topics import topics

    for topic, text in sorted(topics.items()):
        for part, answer in enumerate(_pieces(text), start=1):
            yield {"question": f"What does Python's documentation say about {topic} ({part})?", "answer": answer}


def squad_like_samples(num_samples: int = 4096) -> Iterator[dict[str, str]]:
    """Random words with lengths spread like SQuAD 1.1's: passages log-normal around 110 words and, like the paper's
    (Rajpurkar et al., 2016), of 500 characters or more; questions of about 10 words, answers of about 3.

    A word of English is about 1.3 tokens of Llama's tokenizer; those used here are one token of the packaged one, so
    that random weights see as many tokens as pretrained ones would.
    """
    vocabulary = json.loads((RECIPES / "models/tokenizer-llama/tokenizer.json").read_text(encoding="utf-8"))
    words = sorted(token[1:] for token in vocabulary["model"]["vocab"] if re.fullmatch("Ġ[a-z]{2,}", token))
    source = random.Random(0)
    for _ in range(num_samples):
        passage = min(650, max(80, source.lognormvariate(math.log(110), 0.4)))
        lengths = (passage, max(3, source.gauss(10, 3.5)), 1 + source.expovariate(1 / 2))
        context, question, answer = (" ".join(source.choices(words, k=round(1.3 * length))) for length in lengths)
        yield {"question": f"{context} {question}", "answer": answer}


def _pieces(text: str) -> Iterator[str]:
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if piece and len(piece) + len(paragraph) > _CHUNK_CHARACTERS:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece:
        yield piece


def check_jsonl(data: DataConfig) -> None:
    """Raises RequestError at the first line of the user's file that training would stumble over."""
    if data.kind is not DataKind.jsonl:
        return
    path = Path(str(data.path)).expanduser()
    if not path.is_file():
        raise RequestError(f"data.path={data.path}: no such file; give a file with one JSON object a line")
    columns = {"data.question": data.question, "data.answer": data.answer}
    columns |= {"data.context": data.context} if data.context else {}
    columns |= {"data.image": data.image} if data.image else {}
    num_samples = 0
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _check_line(f"{path}, line {number}", line, columns)
                    num_samples += 1
        except UnicodeDecodeError as error:
            raise RequestError(f"data.path={path}: not UTF-8 text ({error})") from error
    if not num_samples:
        raise RequestError(f"data.path={path}: the file holds no samples")


def _check_line(where: str, line: str, columns: dict[str, str]) -> None:
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise RequestError(f"data.path: {where}: not JSON ({error}): {line.strip()[:80]}") from error
    if not isinstance(sample, dict):
        raise RequestError(f"data.path: {where}: expected a JSON object, got {type(sample).__name__}")
    for key, column in columns.items():
        if not isinstance(sample.get(column), str) or not sample[column].strip():
            got = "nothing" if column not in sample else repr(sample[column])[:40]
            raise RequestError(
                f"data.path: {where}: column {column!r} ({key}) should hold text, got {got}; the line has the columns "
                f"{', '.join(map(str, sample))}.{did_you_mean(column, map(str, sample))}"
            )
