"""Datasets and tokenizers of the Hugging Face hub, without a network."""

from pathlib import Path

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from moebius.config import DataConfig
from moebius.data.sources import Document, documents
from moebius.data.tally import Tally
from moebius.data.tokenizer import Tokenizer, prepare_tokenizer, tokenizer_file
from moebius.errors import DataError

datasets = pytest.importorskip("datasets")  # large, and not everywhere


def read(source: object, tally: Tally | None = None, **settings) -> list[Document]:
    return list(documents(DataConfig(source=str(source), **settings), tally))


def refusal(source: object, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read(source, **settings)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def test_hugging_face_on_a_local_folder_of_json_lines(tmp_path, offline):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read(f"hf:{tmp_path}") == [
        Document("one", f"hf:{tmp_path}: row 1"),
        Document("two", f"hf:{tmp_path}: row 2"),
    ]


def test_hugging_face_on_a_local_folder_of_parquet(tmp_path, offline):
    table = pyarrow.table({"body": ["one", None, "two"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    tally = Tally()
    rows = read(f"hf:{tmp_path}", tally, text_field="body", errors="skip")
    assert [document.text for document in rows] == ["one", "two"]
    assert tally.first == f"hf:{tmp_path}: row 2: field 'body' is null, not text"
    assert "no field 'text' (set --data.text_field to one of: body)" in refusal(f"hf:{tmp_path}")


def test_a_hub_that_cannot_be_reached_is_one_line(offline):
    assert refusal("hf:nobody/of-this-name").startswith("data.source='hf:nobody/of-this-name': ")
    assert "hf:NAME or hf:NAME:SUBSET" in refusal("hf:")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    def no_network(self, name, timeout):
        raise ConnectionError(f"https://huggingface.co/{name}?token=secret: no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", no_network)
    monkeypatch.setattr("datasets.load_dataset", None)
    assert (
        refusal("hf:a/b") == "data.source='hf:a/b': the Hugging Face hub could not be reached "
        "(ConnectionError: https://huggingface.co/a/b no network)"
    )


def test_a_data_set_with_a_script_is_refused(tmp_path, offline):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert refusal(f"hf:{folder}").startswith("data.source=")
    assert refusal(f"hf:{folder}/scripted.py").startswith("data.source=")
    assert not (tmp_path / "ran").exists()


def test_a_dataset_that_was_saved_to_disk_may_be_named_as_a_dataset(tmp_path, offline):
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "saved")
    assert [document.text for document in read(f"hf:{tmp_path}/saved")] == ["one", "two"]


def test_a_name_without_hf_is_recognized(tmp_path):
    for name in ("wikitext", "HuggingFaceFW/fineweb-edu"):
        assert refusal(name).endswith(
            f"no such file, folder or glob; did you mean hf:{name}, "
            "a dataset on the Hugging Face hub?"
        )
    for name in ("gone.txt", "a/b/c", "/wikitext", "a*"):
        assert "hf:" not in refusal(name)
    with pytest.raises(DataError, match=r"or hf:NAME; did you mean hf:gpt2\?$"):
        Tokenizer.load(Path("gpt2"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"did you mean .*/model/tokenizer\.json\?$"):
        Tokenizer.load(tmp_path / "model")
    with pytest.raises(DataError, match=r"or hf:NAME$"):
        Tokenizer.load(Path("my/tokenizer.json"))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """A cache of the hub that holds the tokenizer of someone/model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--someone--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0123")
    (model / "snapshots" / "0123").mkdir(parents=True)
    prepare_tokenizer(DataConfig(tokenizer="bytes"), 257, []).save(
        model / "snapshots" / "0123" / "tokenizer.json"
    )
    return model


def test_a_tokenizer_of_the_hub_needs_no_network_once_it_is_in_the_hubs_cache(
    hub_cache, monkeypatch
):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    config = DataConfig(tokenizer="hf:someone/model")
    assert tokenizer_file(config) == hub_cache / "snapshots" / "0123" / "tokenizer.json"
    assert prepare_tokenizer(config, 257, []).size == 257


@pytest.mark.parametrize("is_offline", [True, False])
def test_a_tokenizer_that_cannot_be_fetched_is_one_line(hub_cache, monkeypatch, is_offline):
    def no_network(self, name, timeout):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", is_offline)
    with pytest.raises(
        DataError, match=r"data\.tokenizer='hf:someone/other': the Hugging Face "
    ) as error:
        tokenizer_file(DataConfig(tokenizer="hf:someone/other"))
    assert "could not be reached" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_a_tokenizer_json_is_one_line(hub_cache, monkeypatch):
    def missing(*arguments, **named):
        raise huggingface_hub.errors.EntryNotFoundError("no file")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **n: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    with pytest.raises(
        DataError, match=r"there is no tokenizer\.json in someone/other on the hub"
    ):
        tokenizer_file(DataConfig(tokenizer="hf:someone/other"))
