"""The data files of a run: written for the data made here, checked for the user's own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cctrain.config import DataConfig, DataKind, Lengths
from cctrain.errors import RequestError
from cctrain.nearest import did_you_mean
from cctrain.request.data import DEFAULT_SEQ_LEN
from cctrain.request.texts import Sample, fixed_samples, pydoc_samples, squad_like_samples
from cctrain.untrusted import shown

_NUM_NOISE_IMAGES = 16
_IMAGE_SIZE = (256, 256)
_NUM_VLM_SAMPLES = 1000
"""As many as the seed post's recipes take of MedPix."""


def prepare_data(data: DataConfig, run_dir: Path, *, is_vlm: bool) -> None:
    """Write the files under `run_dir`/data that the recipe's data sections name."""
    if data.kind not in (DataKind.pydoc, DataKind.synthetic) and not (is_vlm and data.kind is DataKind.jsonl):
        return
    folder = run_dir / "data"
    folder.mkdir()
    if is_vlm:
        _write_conversations(data, folder)
    else:
        _write_lines(folder / f"{data.kind.value}.jsonl", _samples(data))


def _samples(data: DataConfig) -> Iterator[Sample]:
    if data.kind is DataKind.pydoc:
        return pydoc_samples()
    if data.lengths is Lengths.squad:
        return squad_like_samples()
    return fixed_samples(data.seq_len or DEFAULT_SEQ_LEN)


def _write_lines(path: Path, rows: Iterator[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_conversations(data: DataConfig, folder: Path) -> None:
    """AutoModel's form for images and text: conversations, with the images as files beside them."""
    media = folder
    rows: Iterator[dict[str, Any]]
    if data.kind is DataKind.jsonl:
        source = Path(str(data.path)).expanduser().resolve()
        media = source.parent
        rows = (_own_conversation(json.loads(line), data) for line in source.open(encoding="utf-8") if line.strip())
    elif data.kind is DataKind.pydoc:
        rows = _pictured_topics(islice(_samples(data), _NUM_VLM_SAMPLES), folder)
    else:
        rows = _pictured_noise(islice(_samples(data), _NUM_VLM_SAMPLES), folder)
    _write_lines(folder / "conversations.jsonl", rows)
    columns = {"messages": "messages", "images": "images"}
    meta = {"train": {"file_name": "conversations.jsonl", "columns": columns, "media_dir": str(media)}}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _own_conversation(row: dict[str, Any], data: DataConfig) -> dict[str, Any]:
    context = f"{row[data.context]} " if data.context else ""
    return _conversation(context + row[data.question], row[data.answer], row[data.image] if data.image else None)


def _conversation(question: str, answer: str, image: str | None) -> dict[str, Any]:
    asked = {"role": "user", "content": f"<image>{question}" if image else question}
    return {"messages": [asked, {"role": "assistant", "content": answer}], "images": [image] if image else []}


def _pictured_topics(samples: Iterator[Sample], folder: Path) -> Iterator[dict[str, Any]]:
    """Each topic with a picture of its name."""
    from PIL import Image, ImageDraw, ImageFont

    for sample in samples:
        name = f"{sample['topic']}.png"
        if not (folder / name).exists():
            picture = Image.new("RGB", _IMAGE_SIZE, "white")
            place = (_IMAGE_SIZE[0] // 2, _IMAGE_SIZE[1] // 2)
            font = ImageFont.load_default(size=28)
            ImageDraw.Draw(picture).text(place, sample["topic"], fill="black", anchor="mm", font=font)
            picture.save(folder / name)
        yield _conversation(sample["question"], sample["answer"], name)


def _pictured_noise(samples: Iterator[Sample], folder: Path) -> Iterator[dict[str, Any]]:
    from PIL import Image

    source = random.Random(0)
    width, height = _IMAGE_SIZE
    for number in range(_NUM_NOISE_IMAGES):
        Image.frombytes("RGB", _IMAGE_SIZE, source.randbytes(3 * width * height)).save(folder / f"noise{number}.png")
    for number, sample in enumerate(samples):
        yield _conversation(sample["question"], sample["answer"], f"noise{number % _NUM_NOISE_IMAGES}.png")


def check_jsonl(data: DataConfig) -> None:
    """Raises RequestError at the first line of the user's file that training would stumble over."""
    if data.kind is not DataKind.jsonl:
        return
    path = Path(str(data.path)).expanduser()
    if not path.is_file():
        problem = "a directory" if path.is_dir() else "no such file"
        raise RequestError(f"data.path={data.path}: {problem}; give a file with one JSON object a line")
    columns = {"data.question": data.question, "data.answer": data.answer}
    columns |= {"data.context": data.context} if data.context else {}
    columns |= {"data.image": data.image} if data.image else {}
    num_samples = 0
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _check_line(f"{path}, line {number}", line, columns, path.parent)
                    num_samples += 1
        except UnicodeDecodeError as error:
            raise RequestError(f"data.path={path}: not UTF-8 text") from error
    if not num_samples:
        raise RequestError(f"data.path={path}: the file holds no samples; give a file with one JSON object a line")


def _check_line(where: str, line: str, columns: dict[str, str], folder: Path) -> None:
    try:
        sample = json.loads(line)
    except ValueError as error:
        raise RequestError(
            f"data.path: {where}: not JSON: {line.strip()[:80]}. Allowed is one JSON object a line, no array and no CSV"
        ) from error
    if not isinstance(sample, dict):
        raise RequestError(f"data.path: {where}: it is {shown(sample)}; allowed is one JSON object a line")
    for key, column in columns.items():
        value = sample.get(column)
        if not isinstance(value, str) or not value.strip():
            got = "nothing" if column not in sample else json.dumps(value)[:40]
            raise RequestError(
                f"data.path: {where}: column {column!r} ({key}) should hold text, got {got}; the line has the columns "
                f"{', '.join(map(str, sample))}.{did_you_mean(column, map(str, sample))}"
            )
        if key == "data.image" and not (folder / value).is_file():
            raise RequestError(f"data.path: {where}: no such image: {folder / value}")
