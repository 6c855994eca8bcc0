"""Fixtures that many tests share: a small configuration and its store."""

import pytest

from configs import tiny
from poison_jax import config as config_lib
from poison_jax.config import Config
from poison_jax.data.store import TokenStore, open_store


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
  """The quickstart's configuration over 1,000 stories, 195,000 tokens.

  `corpus.store` names a folder that `tiny_store` writes.
  """
  c = tiny.get_config()
  c.corpus.stories = 1_000
  c.corpus.held_out = 0.2
  c.corpus.prefix_documents = 300
  c.corpus.workers = 1
  c.corpus.store = str(tmp_path_factory.mktemp("stores") / "tiny")
  c.evaluation.prompts = 20
  return config_lib.from_config_dict(c)


@pytest.fixture(scope="session")
def tiny_store(tiny_config: Config) -> TokenStore:
  """The store of `tiny_config`: 256 pieces trained on its stories."""
  from poison_jax.corpora.writer import write_store

  write_store(tiny_config, report=lambda *_: None, say=lambda _: None)
  return open_store(tiny_config.corpus.store, vocabulary=None)
