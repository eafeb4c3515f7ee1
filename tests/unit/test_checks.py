"""What is refused before anything starts: layouts and batches that do not divide, too few GPUs, a hub out of reach."""

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from cctrain.config import DataConfig, DataKind, Lengths, MeasureConfig
from cctrain.errors import RequestError
from cctrain.request.checks import check_gpus, check_hub, check_layout
from cctrain.request.data import check_packing

MEASURE = MeasureConfig(warmup=1, steps=9)


def layout(world, *, max_steps=10, batch=(32, 1), **distributed):
    scheduler = {"max_steps": max_steps, "global_batch_size": batch[0], "local_batch_size": batch[1]}
    return check_layout({"step_scheduler": scheduler, "distributed": distributed}, MEASURE, world)


def refused(check, *arguments, **options) -> str:
    with pytest.raises(RequestError) as caught:
        check(*arguments, **options)
    return str(caught.value)


def test_what_is_left_of_the_ranks_is_data_parallel():
    split = layout(16, tp_size=2, pp_size=2, cp_size=2, dp_size="none")
    assert (split.world, split.data, split.tensor, split.pipeline, split.context) == (16, 2, 2, 2, 2)


def test_a_recipe_without_a_distributed_section_is_data_parallel():
    scheduler = {"max_steps": 10, "global_batch_size": 4}
    assert check_layout({"step_scheduler": scheduler}, MEASURE, 4).data == 4


def test_ranks_that_do_not_divide_are_refused_with_the_multiple_that_does():
    message = refused(layout, 6, tp_size=2, pp_size=2)
    assert "6 ranks" in message
    assert "launch.nproc_per_node must be a multiple of 4" in message


def test_a_number_of_data_ranks_that_contradicts_the_layout_is_refused():
    message = refused(layout, 8, tp_size=2, dp_size=8)
    assert "train.distributed.dp_size=8" in message
    assert "leave 4" in message


@pytest.mark.parametrize("size", [0, -1, 1.5, "two", True])
def test_a_size_that_is_no_count_is_refused(size):
    assert f"train.distributed.tp_size={size}" in refused(layout, 8, tp_size=size)
    assert f"train.step_scheduler.local_batch_size={size}" in refused(layout, 8, batch=(32, size))


@pytest.mark.parametrize(("batch", "divides"), [((32, 4), True), ((32, 2), True), ((32, 3), False), ((8, 2), False)])
def test_the_global_batch_must_divide_into_micro_batches_of_all_data_ranks(batch, divides):
    if divides:
        assert layout(8, batch=batch).data == 8
    else:
        message = refused(layout, 8, batch=batch)
        assert f"train.step_scheduler.global_batch_size={batch[0]}" in message
        assert f"multiple of {8 * batch[1]}" in message


def test_a_global_batch_that_nobody_gave_is_called_automodels():
    scheduler = {"max_steps": MEASURE.warmup + MEASURE.most_steps, "local_batch_size": 2}
    assert "global_batch_size=1 (AutoModel's default, as the recipe has none)" in refused(
        check_layout, {"step_scheduler": scheduler}, MEASURE, 1
    )


@pytest.mark.parametrize("rank", [0, -8, "8", True])
def test_adapters_of_no_rank_are_refused(rank):
    recipe = {"step_scheduler": {"max_steps": MEASURE.warmup + MEASURE.most_steps}, "peft": {"dim": rank}}
    assert f"train.peft.dim={rank}: allowed is a whole number from 1" in refused(check_layout, recipe, MEASURE, 1)


def test_the_number_of_steps_is_set_by_measuring_only():
    assert "measure.warmup + measure.steps" in refused(layout, 1, max_steps=50)


def test_made_up_samples_that_fit_into_no_packed_row_are_refused_with_the_length_that_does():
    packed = {"packed_sequence": {"packed_sequence_size": 256}}
    whole = DataConfig(kind=DataKind.synthetic)
    message = refused(check_packing, packed, whole)
    assert "packed_sequence_size=256: samples of data=synthetic have 512 tokens" in message
    assert "set data.seq_len to 256 or fewer" in message
    check_packing(packed, DataConfig(kind=DataKind.synthetic, seq_len=256))
    check_packing(packed, DataConfig(kind=DataKind.synthetic, lengths=Lengths.squad))
    check_packing({"packed_sequence": {"packed_sequence_size": 0}}, whole)


def test_more_ranks_than_gpus_are_refused_and_ways_out_named():
    check_gpus(8, 8, "llama70b_peft")
    message = refused(check_gpus, 8, 2, "llama70b_peft")
    assert all(words in message for words in ("8 GPUs", "shows 2", "launch.nproc_per_node", "dry_run=true"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine; returns what it answers (status and error code by path) and the requests it got."""
    answers: dict[str, tuple[int, str]] = {}
    requests: list[tuple[str, str | None]] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("auth-check"):  # the library also asks for things of its own
                requests.append((self.path, self.headers.get("Authorization")))
            status, code = answers.get(self.path, (404, "RepoNotFound"))
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    set_hub(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_port}")
    yield answers, requests
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Nobody listens where the hub should be."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound, but it does not listen
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        set_hub(monkeypatch, tmp_path, endpoint)
        yield endpoint


def set_hub(monkeypatch, home, endpoint):
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "*")
    places = {"HF_HOME": home, "HF_HUB_CACHE": home / "hub", "HF_TOKEN_PATH": home / "token"}
    for name, value in {"ENDPOINT": endpoint, **{name: str(path) for name, path in places.items()}}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def pretrained(name="meta-llama/Llama-3.3-70B", **dataset):
    return {"model": {"pretrained_model_name_or_path": name}, "dataset": dataset}


MODEL_URL = "/api/models/meta-llama/Llama-3.3-70B/auth-check"
GIVEN = (200, "")


def test_a_model_that_the_hub_gives_is_accepted(hub):
    answers, requests = hub
    answers[MODEL_URL] = GIVEN
    check_hub(pretrained())
    assert requests == [(MODEL_URL, None)]


@pytest.mark.parametrize("answer", [(401, "RepoNotFound"), (403, "GatedRepo"), (404, "RepoNotFound")])
def test_a_model_that_the_hub_keeps_back_names_the_login(hub, answer):
    hub[0][MODEL_URL] = answer
    message = refused(check_hub, pretrained())
    assert all(words in message for words in ("meta-llama/Llama-3.3-70B", "hf auth login", "weights=random"))


def test_a_path_of_weights_that_is_none_is_refused_by_the_key_that_named_it(hub):
    message = refused(check_hub, pretrained("/nowhere"), "/nowhere")
    assert message.startswith("weights.path=/nowhere: no such directory (/nowhere)")


def test_who_is_logged_in_is_told_to_the_hub(hub, tmp_path):
    hub[0][MODEL_URL] = GIVEN
    (tmp_path / "token").write_text("hf_secret")
    check_hub(pretrained())
    assert hub[1] == [(MODEL_URL, "Bearer hf_secret")]


def test_a_hub_that_fails_is_told_with_what_it_answers(hub):
    hub[0][MODEL_URL] = (400, "")
    assert "Bad request" in refused(check_hub, pretrained())


def test_a_data_set_of_the_hub_is_checked_too(hub):
    hub[0][MODEL_URL] = GIVEN
    message = refused(check_hub, pretrained(dataset_name="rajpurkar/squad"))
    assert "train.dataset.dataset_name=rajpurkar/squad" in message
    assert "data=pydoc" in message
    hub[0]["/api/datasets/rajpurkar/squad/auth-check"] = GIVEN
    check_hub(pretrained(dataset_name="rajpurkar/squad"))


def test_a_hub_out_of_reach_is_told_with_ways_to_do_without(no_hub):
    message = refused(check_hub, pretrained())
    assert all(words in message for words in (no_hub, "out of reach", "weights=random", "weights.path=DIRECTORY"))


def test_an_offline_machine_does_not_ask_the_hub(hub, monkeypatch):
    hub[0][MODEL_URL] = GIVEN
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused(check_hub, pretrained())
    assert hub[1] == []


def test_the_key_to_change_is_named_where_the_model_is_built_from_its_config(no_hub):
    recipe = {"model": {"config": {"pretrained_model_name_or_path": "google/gemma-4-31B-it"}}}
    assert refused(check_hub, recipe).startswith("train.model.config.pretrained_model_name_or_path=google/")


def test_what_is_cached_needs_no_hub(no_hub, tmp_path):
    (tmp_path / "hub" / "models--meta-llama--Llama-3.3-70B" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "datasets" / "rajpurkar___squad").mkdir(parents=True)
    check_hub(pretrained(dataset_name="rajpurkar/squad"))


def test_files_of_this_machine_need_no_hub(no_hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    check_hub(pretrained(str(tmp_path), path_or_dataset_id="/data/mine.jsonl"))
    packaged = {"config": {"pretrained_model_name_or_path": "{recipes}/models/tiny-llama"}}
    check_hub({"model": packaged, "dataset": {"path_or_dataset_id": "{run_dir}/data/pydoc.jsonl"}})


def test_a_directory_without_a_model_is_refused_before_ranks_start(no_hub, tmp_path):
    message = refused(check_hub, pretrained(str(tmp_path)))
    assert f"{tmp_path}: the directory holds no config.json" in message
