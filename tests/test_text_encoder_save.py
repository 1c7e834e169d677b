"""`save_pretrained`: what comes back from the folder is the model, with what was changed."""

import importlib.util
import json

import numpy as np
import pytest
from minilm import minilm_folder

import headwise as hw

pytestmark = pytest.mark.once

TEXTS = ["a dog ate the food", "", "it was hungry"]


def rows(encoder):
    """Return the embeddings of TEXTS without a warning of those that are cut."""
    return encoder.encode(TEXTS, return_info=True)[0]


@pytest.fixture
def encoder():
    return hw.TextEncoder.from_pretrained(minilm_folder())


def test_a_saved_model_is_the_model(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "modules.json", "README.md"):
        assert (folder / name).read_bytes() == (minilm_folder() / name).read_bytes()
        assert not (folder / name).is_symlink()
    again = hw.TextEncoder.from_pretrained(folder)
    assert repr(again) == repr(encoder)
    assert np.array_equal(rows(again), rows(encoder))


def changed(encoder):
    encoder.max_seq_length = 7
    encoder.prompts |= {"query": "Frage — ", "passage": "p: "}
    encoder.default_prompt_name = "passage"
    encoder.similarity_fn_name = "euclidean"
    encoder.truncate_dim = 100
    encoder.set_pooling_include_prompt(False)
    return encoder


def test_what_was_changed_is_saved(tmp_path):
    encoder = changed(hw.TextEncoder.from_pretrained(minilm_folder(), pooling="cls"))
    encoder.save_pretrained(tmp_path, create_model_card=False)
    assert not (tmp_path / "README.md").exists()
    again = hw.TextEncoder.from_pretrained(tmp_path)
    assert repr(again) == repr(encoder)
    for name in ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "max_seq_length"):
        assert getattr(again, name) == getattr(encoder, name)
    assert np.array_equal(rows(again), rows(encoder))
    # Into its own folder, with something changed back.
    again.max_seq_length = 100
    again.set_pooling_include_prompt(True)
    again.save_pretrained(tmp_path)
    third = hw.TextEncoder.from_pretrained(tmp_path)
    assert third.max_seq_length == 100
    assert np.array_equal(rows(third), rows(again))


def test_links_are_replaced_not_written_through(encoder, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    precious = tmp_path / "precious.json"
    precious.write_text("{}")
    for name in ("config.json", "sentence_bert_config.json"):
        (target / name).symlink_to(precious)
    encoder.max_seq_length = 9
    encoder.save_pretrained(target)
    assert precious.read_text() == "{}"
    assert hw.TextEncoder.from_pretrained(target).max_seq_length == 9


def test_a_folder_of_transformers_alone_becomes_whole(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (plain / name).symlink_to(minilm_folder() / name)
    encoder = hw.TextEncoder.from_pretrained(plain, pooling="max")
    encoder.save_pretrained(tmp_path / "whole")
    modules = json.loads((tmp_path / "whole" / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling"]
    again = hw.TextEncoder.from_pretrained(tmp_path / "whole")
    assert repr(again) == repr(encoder)
    assert np.array_equal(rows(again), rows(encoder))


def test_what_cannot_be_saved_is_an_error(encoder, tmp_path):
    for keywords in ({"safe_serialization": False}, {"model_name": "x"}, {"train_datasets": ["x"]}):
        with pytest.raises(ValueError, match=next(iter(keywords))):
            encoder.save_pretrained(tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()
    (tmp_path / "gone").mkdir()
    for file in minilm_folder().iterdir():
        (tmp_path / "gone" / file.name).symlink_to(file)
    gone = hw.TextEncoder.from_pretrained(tmp_path / "gone")
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="gone"):
        gone.save_pretrained(tmp_path / "out")


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
@pytest.mark.parametrize("pooling", [None, "cls"])
def test_sentence_transformers_loads_it(tmp_path, pooling):
    from sentence_transformers import SentenceTransformer

    encoder = changed(hw.TextEncoder.from_pretrained(minilm_folder(), pooling=pooling, dtype="float64"))
    encoder.save_pretrained(tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu").double()
    assert theirs.max_seq_length == 7
    assert theirs.prompts == encoder.prompts
    assert theirs.default_prompt_name == "passage"
    assert theirs.similarity_fn_name == "euclidean"
    assert theirs.truncate_dim == 100
    assert np.abs(rows(encoder) - theirs.encode(TEXTS)).max() <= 1e-14
