"""What the core's tests share: a tiny random pipeline, made once, and one thread for torch."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_pipe():
    """For tests that leave the pipeline as it was."""
    from tiny import tiny_pipeline

    return tiny_pipeline()
