"""Secrets: what counts as one by name and by form, and that nothing else does."""

import json

import pytest
import yaml

from cctrain.packaged import CONF, RECIPES
from cctrain.redaction import REDACTED, is_secret_name, redact_file, redacted, secret_paths

HF, WANDB = "hf_" + "aB3" * 12, "0123456789abcdef0123456789abcdef01234567"
FILES = sorted(path for root in (CONF, RECIPES) for path in root.rglob("*") if path.suffix in (".yaml", ".json"))


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MYTOKEN", "DB_PASS", "SSH_AUTH_SOCK", "COOKIE_JAR"),
        *("SSHPASS", "PGPASSWORD", "MYSQL_PWD", "AUTHORIZATION"),
        *("token", "hf_token", "hfToken", "api_key", "apiKey", "--api-key", "password", "client_secret", "oauth"),
        *("use_auth_token", "authorization", "systemd.set_credential", "train.model.token", "private_key"),
        *("api_keys", "access_tokens", "db_pwd", "wandb_key", "openai_key", "signing_key", "hmac_key"),
    ],
)
def test_a_name_of_a_secret(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer", "TOKENIZERS_PARALLELISM", "num_tokens", "exclude_token_ids", "eos_token", "image_token"),
        *("key", "keys", "best_metric_key", "image_key", "num_key_value_heads", "key_mapping", "author", "PWD"),
        *("ISPASS", "GIT_AUTHOR_NAME", "OLDPWD", "BYPASS", "XKB_KEYMAP", "pwd", "special_tokens", "tokens"),
        *("passage", "forward_pass", "pass_through", "CUDA_HOME", "NCCL_NVLS_ENABLE", "tokens_per_s_per_gpu", ""),
    ],
)
def test_a_name_of_something_else(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_nothing_that_cctrain_comes_with_looks_like_a_secret(path):
    content = yaml.safe_load(path.read_text())
    if path.name != "tokenizer.json":  # words of a vocabulary are keys there, and no request holds them
        assert list(secret_paths(content, path.stem)) == []
        assert redacted(content, {}) == content


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"download with {HF} failed", f"download with {REDACTED} failed"),
        ("sk-proj-abcdefghijklmnopqrstuvwx.", f"{REDACTED}."),
        ("origin https://me:hunter2@github.com/a/b.git", f"origin https://{REDACTED}@github.com/a/b.git"),
        ("GET http://host/?token=abc&page=2", f"GET http://host/?token={REDACTED}&page=2"),
        ("Authorization: Bearer abcdef.ghi-jkl", f"Authorization: {REDACTED} {REDACTED}"),
        ("Authorization: Token abcdef0123456789 sent", f"Authorization: {REDACTED} sent"),
        ("pull with dckr_pat_aB3aB3aB3aB3aB3aB3aB3 now", f"pull with {REDACTED} now"),
        ("POST https://hooks.slack.com/services/T0/B0/abc", f"POST https://hooks.slack.com/services/{REDACTED}"),
        ("run --hf-token abc --steps 5", f"run --hf-token {REDACTED} --steps 5"),
        ("+train.model.token=abc", f"+train.model.token={REDACTED}"),
        ("{'api_key': 'a b', 'lr': 1}", f"{{'api_key': '{REDACTED}', 'lr': 1}}"),
        ('{"password": "a\'b", "x": 1}', f'{{"password": "{REDACTED}", "x": 1}}'),
        ("path=http://h/?password=abc", f"path=http://h/?password={REDACTED}"),
        ("token=a:password=b end", f"token={REDACTED} end"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nx", f"{REDACTED}\nx"),
        ("key wandb_v1_aB3aB3aB3aB3aB3aB3aB3 end", f"key {REDACTED} end"),
        (
            "GET https://b/k?X-Amz-Signature=a1b2&X-Amz-Date=1",
            f"GET https://b/k?X-Amz-Signature={REDACTED}&X-Amz-Date=1",
        ),
        ('{"auths": {"r": {"auth": "bWU="}}}', f'{{"auths": {{"r": {{"auth": "{REDACTED}"}}}}}}'),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2lnbmF0dXJl", REDACTED),
        (f"login {WANDB}", f"login {REDACTED}"),
    ],
)
def test_a_secret_in_text_is_cut_out_and_the_rest_stays(text, clean):
    environment = {"WANDB_API_KEY": WANDB, "SHORT_KEY": "in", "HOME": "failed"}
    assert redacted(text, environment) == clean
    assert redacted(clean, environment) == clean


@pytest.mark.parametrize(
    "line",
    [
        "KeyError: 'model.layers.0'",
        "step 12 | loss 3.2 | num_label_tokens: 512 | tps 1,234.5",
        'Missing key(s) in state_dict: "lm_head.weight"',
        "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
        "see https://pytorch.org/docs@stable: passing keys",
        "tokenizer: meta-llama/Llama-3.1-8B",
        "git@github.com:a/b.git",
    ],
)
def test_what_logs_say_of_keys_and_tokens_stays(line):
    assert redacted(line, {}) == line


def test_a_tree_is_redacted_by_name_and_value_and_named_by_path():
    tree = {
        "model": {"token": "abc", "path": "https://u:p@host/m", "eos_token": "</s>", "trust": False},
        "dataset": [{"api_key": ""}, f"x {HF}", 5, None, ("a", "b")],
        "password": REDACTED,
    }
    clean = redacted(tree, {})
    assert clean["model"] == {
        "token": REDACTED,
        "path": f"https://{REDACTED}@host/m",
        "eos_token": "</s>",
        "trust": False,
    }
    assert clean["dataset"] == [{"api_key": ""}, f"x {REDACTED}", 5, None, ("a", "b")]
    assert list(secret_paths(tree, "train")) == ["train.model.token", "train.model.path", "train.dataset[1]"]
    assert list(secret_paths(clean, "train")) == []
    assert json.loads(json.dumps(clean))["password"] == REDACTED


@pytest.mark.parametrize("value", [["abc"], {"user": "a", "key": "b"}, 987654321, 9.8e9])
def test_a_secret_need_not_be_text(value):
    assert list(secret_paths({"model": {"secret": value}}, "train")) == ["train.model.secret"]
    assert redacted({"secret": value}, {}) == {"secret": REDACTED}


@pytest.mark.parametrize("name", ["api_keys", "API_KEYS", "apiKeys", "clientSecret", "access-tokens", "db_password"])
def test_lists_of_secrets_are_secrets_by_their_names(name):
    assert redacted({name: ["abc"]}, {}) == {name: REDACTED}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_token", [128001, 128009]),
        ("eot_token", 128009),
        ("vision_start_token", 151652),
        ("flops_per_token", 4.8e10),
        ("signature", ["input_ids", "labels"]),
        ("auth", {"enabled": True, "kind": "none"}),
        ("first_pass", {"lr": "a"}),
        ("special_tokens", ["###"]),
    ],
)
def test_what_recipes_have_under_like_names_is_no_secret(name, value):
    assert redacted({name: value}, {}) == {name: value}


@pytest.mark.parametrize("value", [[], ["<image>"], {}, True, 7, 0.5, None])
def test_switches_counts_and_words_of_a_vocabulary_are_no_secrets(value):
    assert redacted({"secret": value}, {}) == {"secret": value}


def test_what_this_environment_keeps_secret_is_found_in_a_tree(monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", "correct-horse")
    assert list(secret_paths({"note": ["a correct-horse b"]}, "train")) == ["train.note[0]"]
    assert redacted({"note": "correct-horse"}) == {"note": REDACTED}


def test_a_log_is_rewritten_only_where_it_holds_a_secret(tmp_path):
    log = tmp_path / "rank0.log"
    log.write_bytes(b"loss \xff 1\r2\n")
    before = log.stat()
    redact_file(log)
    assert (log.stat().st_mtime_ns, log.read_bytes()) == (before.st_mtime_ns, b"loss \xff 1\r2\n")
    log.write_bytes(b"loss \xff 1\r2\ntoken=abc\n")
    redact_file(log)
    assert log.read_bytes() == b"loss \xff 1\r2\ntoken=[redacted]\n"
