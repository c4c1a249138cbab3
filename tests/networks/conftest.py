"""Fixtures of the network tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The networks here are tiny: on a busy machine, waiting for a second thread takes longer than all they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
