import pytest
import torch


@pytest.fixture(scope='package', autouse=True)
def one_thread():
    """These tensors are small: on a busy machine starting threads takes most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
