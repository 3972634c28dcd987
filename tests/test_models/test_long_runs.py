"""Memory of long runs, concurrent threads, and copies of a model."""

import copy
import ctypes
import gc
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch

from mmfocalnet import FocalNet

MEBIBYTE = 2**20


def build(**settings):
    net = FocalNet(embed_dim=16, depths=(1, 2), focal_windows=(5, 3), **settings)
    net.init_weights()
    return net


def resident():
    """Bytes of resident memory, without free memory that glibc keeps."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096


def train(net, steps, rng):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(steps):
        height, width = (rng.randrange(16, 72) for _ in range(2))
        optimizer.zero_grad()
        sum(out.mean() for out in net(torch.randn(1, 3, height, width))).backward()
        optimizer.step()


@pytest.mark.slow
def test_memory_does_not_grow_with_changing_image_sizes():
    """500 iterations with as many sizes, after 300 that fill the caches and glibc's heap."""
    net, rng = build(), random.Random(0)
    train(net, 300, rng)
    gc.collect()
    before, objects = resident(), len(gc.get_objects())
    train(net, 500, rng)
    gc.collect()
    # 20 KiB per iteration: less than the smallest image with its features.
    assert resident() - before < 10 * MEBIBYTE
    assert len(gc.get_objects()) - objects < 500


@pytest.mark.parametrize('grad', [False, True])
def test_concurrent_threads_get_their_own_results(grad):
    net = build(drop_path_rate=0.0).train(grad)
    images = [torch.randn(1, 3, 20 + 7 * index, 40) for index in range(24)]

    def run(image):
        image = image.clone().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            outs = net(image)
            taken = torch.autograd.grad(sum(o.sum() for o in outs), image) if grad else ()
        return *outs, *taken

    expected = [run(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, images * 4))
    for outs, alone in zip(found, expected * 4, strict=True):
        for out, wanted in zip(outs, alone, strict=True):
            torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)


def duplicate_by_pickle(net):
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize('duplicate', [copy.deepcopy, duplicate_by_pickle])
@pytest.mark.parametrize('used', [False, True])
def test_copies_are_complete_and_independent(duplicate, used):
    net = build(use_layerscale=True).eval()
    image = torch.randn(1, 3, 40, 60)
    if used:
        sum(out.sum() for out in net(image)).backward()
        net.zero_grad()
    twin = duplicate(net)
    with torch.no_grad():
        for out, wanted in zip(twin(image), net(image), strict=True):
            assert torch.equal(out, wanted)
    with torch.no_grad():
        twin.patch_embed.proj.weight.zero_()
    assert net.patch_embed.proj.weight.any()
    assert {p.data_ptr() for p in net.parameters()}.isdisjoint(
        p.data_ptr() for p in twin.parameters()
    )
    assert twin.out_indices == net.out_indices and not twin.training
