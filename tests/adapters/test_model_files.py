"""The vocabulary's size from real files in a model directory and in a hub cache."""

import json

import pytest

from pytest_vllmperf.adapters.model_files import context_size, vocabulary_size


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty hub cache in place of the user's."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def write_config(folder, config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_model_directory_tells(tmp_path):
    assert vocabulary_size(write_config(tmp_path / "model", {"vocab_size": 512})) == 512


def test_a_model_tells_the_context_it_was_made_for(tmp_path):
    folder = write_config(tmp_path / "model", {"vocab_size": 512, "text_config": {"max_position_embeddings": 8192}})
    assert context_size(folder) == 8192
    assert context_size(write_config(tmp_path / "silent", {"vocab_size": 512})) is None


def test_a_multimodal_model_tells_in_its_text_part(tmp_path):
    assert vocabulary_size(write_config(tmp_path / "model", {"text_config": {"vocab_size": 99}})) == 99


def test_a_hub_id_is_looked_up_in_the_cache_at_its_main_revision(hub):
    cached = hub / "models--org--name"
    write_config(cached / "snapshots" / "aaa", {"vocab_size": 1})
    write_config(cached / "snapshots" / "bbb", {"vocab_size": 2})
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("bbb\n")
    assert vocabulary_size("org/name") == 2


def test_without_a_main_revision_any_snapshot_tells(hub):
    write_config(hub / "models--org--name" / "snapshots" / "aaa", {"vocab_size": 1})
    assert vocabulary_size("org/name") == 1


def test_the_cache_may_be_named_directly(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    write_config(tmp_path / "elsewhere" / "models--org--name" / "snapshots" / "aaa", {"vocab_size": 7})
    assert vocabulary_size("org/name") == 7


@pytest.mark.parametrize("config", [{}, [], {"vocab_size": None}, {"vocab_size": "many"}, {"vocab_size": 0}])
def test_a_configuration_that_does_not_tell_gives_none(tmp_path, config):
    assert vocabulary_size(write_config(tmp_path / "model", config)) is None


def test_an_unreadable_configuration_gives_none(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    assert vocabulary_size(str(tmp_path / "model")) is None


def test_an_unknown_model_gives_none():
    assert vocabulary_size("nobody/nothing") is None
