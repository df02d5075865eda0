"""One tiny study, run once for all tests."""

import shutil
from contextlib import contextmanager
from functools import partial

import pytest

from diffsae_lens.study import _organisms as organisms
from diffsae_lens.study._run import run as run_study
from tests.conftest import plant, tiny_llama, write_tiny_model
from tests.study.tiny import tiny_config, trained_config


@pytest.fixture(scope="session")
def config(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models")
    # Ordinary texts are long.
    base = tiny_llama(max_position_embeddings=1024)
    return tiny_config(
        write_tiny_model(folder / "base", base, tokenizer),
        write_tiny_model(folder / "finetuned", plant(base), tokenizer),
    )


@pytest.fixture(scope="session")
def run(config, tmp_path_factory):
    """A finished run, not to be written to, and what it found."""
    path = tmp_path_factory.mktemp("run") / "study"
    return path, run_study(config, path)


@contextmanager
def few_words_each():
    """Organisms are measured on short completions: random models do not stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(organisms, "complete", partial(organisms.complete, max_new_tokens=4))
        yield


@pytest.fixture
def few_words():
    with few_words_each():
        yield


@pytest.fixture(scope="session")
def trained(config, tmp_path_factory):
    """A run on an organism that it trained, and what it found."""
    path = tmp_path_factory.mktemp("trained") / "study"
    with few_words_each():
        return path, run_study(trained_config(config.models.base), path)


@pytest.fixture
def copied(run, tmp_path):
    """A finished run for one test, and what it found."""
    path, results = run
    shutil.copytree(path, tmp_path / "study")
    return tmp_path / "study", results
