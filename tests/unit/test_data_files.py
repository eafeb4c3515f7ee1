"""The texts made here, the files written of them, and the checks of the user's own file."""

import itertools
import json
import statistics

import pytest

from cctrain.config import DataConfig, DataKind, Lengths
from cctrain.errors import RequestError
from cctrain.request.data_files import check_jsonl, prepare_data
from cctrain.request.texts import fixed_samples, pydoc_samples, squad_like_samples

GOOD = '{"question": "How?", "answer": "So."}\n'


def own(tmp_path, content: str | bytes, **columns) -> DataConfig:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return DataConfig(kind=DataKind.jsonl, path=str(path), **columns)


def refusal(data: DataConfig) -> str:
    with pytest.raises(RequestError) as caught:
        check_jsonl(data)
    return str(caught.value)


def test_a_good_file_is_accepted_blank_lines_and_further_columns_too(tmp_path):
    check_jsonl(own(tmp_path, GOOD + "\n" + '{"question": "a", "answer": "b", "source": 7}'))


def test_only_the_users_own_file_is_checked():
    check_jsonl(DataConfig(kind=DataKind.pydoc))


def test_a_missing_file_is_named(tmp_path):
    data = DataConfig(kind=DataKind.jsonl, path=str(tmp_path / "no.jsonl"))
    assert f"data.path={tmp_path / 'no.jsonl'}: no such file" in refusal(data)
    assert f"data.path={tmp_path}: a directory; give a file" in refusal(
        DataConfig(kind=DataKind.jsonl, path=str(tmp_path))
    )


@pytest.mark.parametrize("bad", ["{oops\n", "[1, 2]\n", '"text"\n'])
def test_a_bad_line_is_named_by_its_number(tmp_path, bad):
    message = refusal(own(tmp_path, GOOD + "\n" + GOOD + bad + GOOD))
    assert "mine.jsonl, line 4" in message


@pytest.mark.parametrize("value", ["null", "3", '""', '"  "', '["a"]'])
def test_a_column_without_text_is_refused(tmp_path, value):
    message = refusal(own(tmp_path, GOOD + f'{{"question": {value}, "answer": "So."}}'))
    assert "line 2" in message
    assert "'question' (data.question) should hold text" in message


def test_a_missing_column_names_those_there_are_and_the_nearest(tmp_path):
    message = refusal(own(tmp_path, '{"prompt": "a", "answers": "b"}', question="prompt"))
    assert "column 'answer' (data.answer)" in message
    assert "columns prompt, answers" in message
    assert "Did you mean answers?" in message


def test_columns_are_those_that_were_named(tmp_path):
    line = '{"q": "a", "a": "b", "passage": "c"}'
    check_jsonl(own(tmp_path, line, question="q", answer="a", context="passage"))
    assert "data.context" in refusal(own(tmp_path, line, question="q", answer="a", context="text"))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    assert "holds no samples" in refusal(own(tmp_path, content))


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    assert "not UTF-8" in refusal(own(tmp_path, GOOD.encode() + '{"question": "Wie läuft'.encode("latin-1")))


def test_a_missing_image_is_named_relative_to_the_file(tmp_path):
    line = '{"question": "a", "answer": "b", "image": "there.png"}\n'
    (tmp_path / "there.png").write_bytes(b"")
    check_jsonl(own(tmp_path, line, image="image"))
    message = refusal(own(tmp_path, line + line.replace("there", "gone"), image="image"))
    assert "line 2" in message
    assert str(tmp_path / "gone.png") in message


def test_pydoc_is_the_documentation_of_this_python():
    from pydoc_data.topics import topics

    samples = list(pydoc_samples())
    assert {sample["topic"] for sample in samples} == set(topics)
    assert all(sample["topic"] in sample["question"] and sample["answer"].strip() for sample in samples)
    assert len({sample["question"] for sample in samples}) == len(samples) > 500
    answers = "\n\n".join(sample["answer"] for sample in samples if sample["topic"] == "while")
    assert answers.split() == topics["while"].split()


def test_fixed_samples_have_no_fewer_words_than_tokens_asked_for():
    for seq_len in (8, 300):
        samples = list(itertools.islice(fixed_samples(seq_len), 50))
        assert {len(sample["answer"].split()) for sample in samples} == {seq_len}
        assert len({sample["answer"] for sample in samples}) == 50


def test_squad_like_samples_are_as_long_as_squads_and_as_varied():
    words = [len(f"{sample['question']} {sample['answer']}".split()) for sample in squad_like_samples()]
    assert statistics.median(words) == pytest.approx(1.3 * 125, rel=0.1)
    assert min(words) >= 1.3 * 80
    assert max(words) > 2.5 * statistics.median(words)


def test_made_up_samples_are_the_same_every_time():
    assert list(squad_like_samples(20)) == list(squad_like_samples(20))
    first, second = (list(itertools.islice(fixed_samples(16), 20)) for _ in range(2))
    assert first == second


def written(run_dir, data: DataConfig, *, is_vlm: bool = False) -> list[str]:
    prepare_data(data, run_dir, is_vlm=is_vlm)
    return sorted(path.name for path in run_dir.glob("data/*"))


@pytest.mark.parametrize("data", [DataConfig(kind=DataKind.recipe), DataConfig(kind=DataKind.squad)])
def test_data_that_is_elsewhere_is_not_copied(tmp_path, data):
    assert written(tmp_path, data) == []


def test_text_is_written_one_object_a_line(tmp_path):
    data = DataConfig(kind=DataKind.synthetic, lengths=Lengths.squad)
    assert written(tmp_path, data) == ["synthetic.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "data" / "synthetic.jsonl").open()]
    assert rows == list(squad_like_samples())
    check_jsonl(DataConfig(kind=DataKind.jsonl, path=str(tmp_path / "data" / "synthetic.jsonl")))


def test_conversations_for_vlm_recipes_name_images_that_are_there(tmp_path):
    from PIL import Image

    written(tmp_path, DataConfig(kind=DataKind.synthetic, seq_len=16), is_vlm=True)
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())["train"]
    rows = [json.loads(line) for line in (tmp_path / "data" / meta["file_name"]).open()]
    assert {row["messages"][0]["content"].count("<image>") for row in rows} == {1}
    for name in {image for row in rows for image in row["images"]}:
        with Image.open(f"{meta['media_dir']}/{name}") as image:
            assert image.size == (256, 256)


def test_own_conversations_take_the_columns_named_and_images_beside_the_file(tmp_path):
    folder, run_dir = tmp_path / "mine", tmp_path / "run"
    folder.mkdir()
    run_dir.mkdir()
    row = {"q": "What?", "a": "This.", "c": "Look.", "i": "x.png"}
    data = own(folder, json.dumps(row) + "\n", question="q", answer="a", context="c", image="i")
    assert written(run_dir, data, is_vlm=True) == ["conversations.jsonl", "meta.json"]
    conversation = json.loads((run_dir / "data" / "conversations.jsonl").read_text())
    assert [message["content"] for message in conversation["messages"]] == ["<image>Look. What?", "This."]
    assert conversation["images"] == ["x.png"]
    assert json.loads((run_dir / "data" / "meta.json").read_text())["train"]["media_dir"] == str(folder)
