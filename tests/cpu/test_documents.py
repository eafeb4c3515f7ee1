"""Which models may be given boundaries of documents in place of a mask; that attention is the same is a GPU's test."""

import pytest

# Those of the libraries, when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def sees_all():
    """Of a configuration of transformers', by class and settings."""
    import transformers

    from cctrain.engines.documents import sees_all

    def ask(kind, attn_implementation="sdpa", **settings):
        config = getattr(transformers, f"{kind}Config")(**settings)
        config._attn_implementation = attn_implementation
        return sees_all(config)

    return ask


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
def test_models_that_hand_their_attention_what_a_batch_brings_may(sees_all, kind):
    assert sees_all(kind)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Mistral", {"sliding_window": 4096}),
        ("Gemma2", {}),
        ("Falcon", {}),
        ("StableLm", {}),
        ("GPT2", {}),
        ("Llama", {"attention_dropout": 0.1}),
        ("Llama", {"head_dim": 512}),
        ("Llama", {"attn_implementation": "eager"}),
    ],
)
def test_others_may_not(sees_all, kind, settings):
    assert not sees_all(kind, **settings)


def test_a_model_without_a_configuration_may_not():
    from cctrain.engines.documents import sees_all

    assert not sees_all(None)
