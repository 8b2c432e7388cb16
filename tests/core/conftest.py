"""What the core's tests share: a tiny random pipeline, made once, and one thread for torch."""

import pytest
import torch

from tiny import original_checkpoint, tiny_pipeline


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_pipe():
    """For tests that leave the pipeline as it was."""
    return tiny_pipeline()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint of the original with its config."""
    return original_checkpoint(tmp_path_factory.mktemp("mira"))
