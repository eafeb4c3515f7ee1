"""Question and answer texts that need no download: real ones from Python's documentation, and made-up ones."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator

from cctrain.packaged import RECIPES

_CHUNK_CHARACTERS = 600
"""Length of a pydoc answer: about 200 tokens of the small tokenizers, so that one topic gives several samples."""
_TOKENS_A_WORD = 1.3
"""English in Llama's tokenizer, roughly; the words below are one token each of the packaged tokenizer."""

Sample = dict[str, str]


def pydoc_samples() -> Iterator[Sample]:
    """Question (the topic) and answer (a piece of its text) from the documentation of the Python that runs this."""
    from pydoc_data.topics import topics

    for topic, text in sorted(topics.items()):
        for part, answer in enumerate(_pieces(text), start=1):
            yield {"topic": topic, "question": f"What does Python say about {topic} ({part})?", "answer": answer}


def _pieces(text: str) -> Iterator[str]:
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if piece and len(piece) + len(paragraph) > _CHUNK_CHARACTERS:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece:
        yield piece


def fixed_samples(seq_len: int) -> Iterator[Sample]:
    """Random words, more than `seq_len` tokens a sample, to be cut there; the loss is on nearly all of them."""
    words, source = _words(), random.Random(0)
    for _ in range(max(256, 1_000_000 // seq_len)):
        yield {"question": "Say:", "answer": " ".join(source.choices(words, k=seq_len))}


def squad_like_samples(num_samples: int = 4096) -> Iterator[Sample]:
    """Random words with lengths spread like SQuAD 1.1's: passages log-normal around 110 words and, like the paper's
    (Rajpurkar et al., 2016), of 500 characters or more; questions of about 10 words, answers of about 3."""
    words, source = _words(), random.Random(0)
    for _ in range(num_samples):
        passage = min(650, max(80, source.lognormvariate(math.log(110), 0.4)))
        lengths = (passage, max(3, source.gauss(10, 3.5)), 1 + source.expovariate(1 / 2))
        parts = (" ".join(source.choices(words, k=round(_TOKENS_A_WORD * length))) for length in lengths)
        context, question, answer = parts
        yield {"question": f"{context} {question}", "answer": answer}


def _words() -> list[str]:
    """Words that are one token of the packaged tokenizer where a space goes before them."""
    tokenizer = json.loads((RECIPES / "models/tokenizer-llama/tokenizer.json").read_text(encoding="utf-8"))
    return sorted(token[1:] for token in tokenizer["model"]["vocab"] if re.fullmatch("Ġ[a-z]{2,}", token))
