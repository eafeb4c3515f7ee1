"""Write the architecture files beside this script: config.json of six models, one tokenizer, one processor.

They let a recipe build a model with random weights, with no access to a model hub. Run it again after a change:

    python recipes/models/make_models.py

Needs transformers and tokenizers. The output depends on nothing but this file, the version of tokenizers and
the documentation topics of the Python that runs it: the same three give the same bytes.

The full-size files describe the published architectures, with one difference: the ids of special tokens are those of
the small tokenizers here. These files are for random weights only; published weights come with their own files.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
VOCAB_SIZE = 1024

# The order gives the ids: <pad> is 0, <bos> is 1, <eos> is 2, and so on.
LLAMA_SPECIAL = ["<pad>", "<bos>", "<eos>"]

# The spelling is Gemma 4's: AutoModel's collate function looks for "<|turn>model\n" and puts "<|channel>..." after it.
# Gemma4Processor refuses a tokenizer without audio markers, though no recipe here has audio.
GEMMA_NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
GEMMA_SPECIAL = [
    *LLAMA_SPECIAL, "<|turn>", "<turn|>", "<|channel>", "<channel|>", *GEMMA_NAMED.values(), "<|video|>"
]  # fmt: skip

# Turn markers around trimmed text, no more: no tools, no thinking. Role "assistant" is spelled "model".
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] | trim -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}{%- endif -%}
"""


def special_ids(tokens: list[str]) -> dict[str, int]:
    """The ids that `train_tokenizer` gives its special tokens."""
    return {token: index for index, token in enumerate(tokens)}


# --- Architectures


def llama(**shape: object) -> dict:
    """Llama 3's common facts. Source: the published config.json of Llama-3.1-8B-Instruct and Llama-3.3-70B-Instruct."""
    ids = special_ids(LLAMA_SPECIAL)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-05,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        **shape,
    }


def gemma(text: dict, vision: dict, dtype: str) -> dict:
    """Gemma 4's common facts.

    Sources: transformers' defaults of Gemma4TextConfig and Gemma4VisionConfig (rope, activation, patch size 16) and its
    conversion script convert_gemma4_weights.py (5 sliding layers to 1 full one, soft cap 30, keys reused as values in
    the full layers, image tokens that see each other). No per-layer embeddings, shared keys or experts.
    """
    ids = special_ids(GEMMA_SPECIAL)
    common = {"pad_token_id": ids["<pad>"], "bos_token_id": ids["<bos>"], "eos_token_id": ids["<turn|>"]}
    layers = text["num_hidden_layers"]
    assert layers % 6 == 0
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "torch_dtype": dtype,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "image_token_id": ids[GEMMA_NAMED["image_token"]],
        "boi_token_id": ids[GEMMA_NAMED["boi_token"]],
        "eoi_token_id": ids[GEMMA_NAMED["eoi_token"]],
        "audio_token_id": ids[GEMMA_NAMED["audio_token"]],
        "boa_token_id": ids[GEMMA_NAMED["boa_token"]],
        "eoa_token_index": ids[GEMMA_NAMED["eoa_token"]],
        "video_token_id": ids["<|video|>"],
        **common,
        "audio_config": None,
        "text_config": {
            "model_type": "gemma4_text",
            "torch_dtype": dtype,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_k_eq_v": True,
            "enable_moe_block": False,
            "final_logit_softcapping": 30.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size_per_layer_input": 0,
            "initializer_range": 0.02,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * (layers // 6),
            "num_kv_shared_layers": 0,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            "tie_word_embeddings": True,
            "use_bidirectional_attention": "vision",
            "use_cache": True,
            "use_double_wide_mlp": False,
            **common,
            **text,
        },
        "vision_config": {
            "model_type": "gemma4_vision",
            "torch_dtype": dtype,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_activation": "gelu_pytorch_tanh",
            "initializer_range": 0.02,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {"rope_theta": 100.0, "rope_type": "axial"},
            "standardize": True,
            "use_clipped_linears": False,
            **vision,
        },
    }


CONFIGS = {
    "llama-3.3-70b": llama(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "llama-3.1-8b": llama(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
    # Source: the published config.json of Llama-3.2-1B-Instruct.
    "llama-3.2-1b": llama(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        rope_scaling={**llama()["rope_scaling"], "factor": 32.0},
        tie_word_embeddings=True,
    ),
    # Sizes: transformers' convert_gemma4_weights.py, variant gemma-4-31b; the position table is the default's.
    "gemma-4-31b": gemma(
        text={
            "vocab_size": 262144,
            "vocab_size_per_layer_input": 262144,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 60,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "num_global_key_value_heads": 4,
            "global_head_dim": 512,
            "sliding_window": 1024,
            "max_position_embeddings": 262144,
        },
        vision={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 72,
            "max_position_embeddings": 131072,
            "position_embedding_size": 10240,
        },
        dtype="bfloat16",
    ),
    # The tiny models keep every branch of the architecture, and train on a CPU. A wider initializer than the published
    # 0.02 makes up for the small width: a LoRA run, whose output layer is frozen, could hardly lower the loss without.
    "tiny-llama": llama(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.04,
        vocab_size=VOCAB_SIZE,
        torch_dtype="float32",
    ),
    "tiny-gemma-4": gemma(
        text={
            "vocab_size": VOCAB_SIZE,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "num_global_key_value_heads": 1,
            "global_head_dim": 64,
            "initializer_range": 0.04,
            "sliding_window": 128,
            "max_position_embeddings": 8192,
        },
        vision={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 8192,
            # At 70 soft tokens the longest picture is 70 x 1 pooled patches, each 3 x 3 patches: positions up to 209.
            "position_embedding_size": 256,
        },
        dtype="float32",
    ),
}


# --- Tokenizers


def paragraphs() -> Iterator[str]:
    """The training text."""
    for name in sorted(topics):
        yield from topics[name].split("\n\n")


def train_tokenizer(special: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer whose first ids are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    # A line break is always a token of its own, so that a turn marker, which ends with one, never merges with the text.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs(), trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return tokenizer


def begin_with(tokenizer: Tokenizer, token: str) -> None:
    """Let every text begin with `token`, as Llama's own tokenizer does."""
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{token} $A",
                pair=f"{token} $A {token} $B",
                special_tokens=[(token, tokenizer.token_to_id(token))],
            ),
        ]
    )


def tokenizer_config(eos_token: str, **more: object) -> dict:
    """What transformers reads beside tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": eos_token,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        **more,
    }


# 70 soft tokens an image is the least that Gemma 4's image processor takes; published is 280. The rest is its default.
# Patch and pooling sizes must agree with vision_config.
IMAGE_PROCESSOR = {
    "image_processor_type": "Gemma4ImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "max_soft_tokens": 70,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "rescale_factor": 1 / 255,
}


def write_json(path: Path, content: dict) -> None:
    """Write one file, the same bytes for the same content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer.json."""
    directory.mkdir(parents=True, exist_ok=True)
    # One line a token would double the size; json.dumps keeps the order and leaves the spaces out.
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Write all files."""
    for name, config in CONFIGS.items():
        write_json(HERE / name / "config.json", config)

    directory = HERE / "tokenizer-llama"
    tokenizer = train_tokenizer(LLAMA_SPECIAL)
    begin_with(tokenizer, "<bos>")
    write_tokenizer(directory, tokenizer)
    write_json(directory / "tokenizer_config.json", tokenizer_config("<eos>"))

    directory = HERE / "processor-gemma-4"
    write_tokenizer(directory, train_tokenizer(GEMMA_SPECIAL))
    write_json(
        directory / "tokenizer_config.json",
        tokenizer_config("<turn|>", processor_class="Gemma4Processor", extra_special_tokens=GEMMA_NAMED),
    )
    write_json(
        directory / "processor_config.json",
        {
            "processor_class": "Gemma4Processor",
            "image_seq_length": IMAGE_PROCESSOR["max_soft_tokens"],
            "image_processor": IMAGE_PROCESSOR,
            # Unused, but Gemma4Processor cannot be loaded without them.
            "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
            "video_processor": {"video_processor_type": "Gemma4VideoProcessor"},
        },
    )
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


if __name__ == "__main__":
    main()
