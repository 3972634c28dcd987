"""nms and roi_align against compiled mmcv and references, and the module `mmcv._ext`."""

import importlib
import importlib.util
import logging
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmfocalnet.compat import ensure_mmcv_ops, mmcv_ops
from mmfocalnet.compat.mmcv_ops import nms, roi_align
from mmfocalnet.compat.module_finder import ModulePatch
from mmfocalnet.first_use import register_on_first_use

ROOT = Path(__file__).parents[2]
SCALE = 0.25  # of the fixture

# Hides a compiled mmcv, so that the tests are the same with one installed.
NO_EXT = """
    import sys
    from importlib.abc import MetaPathFinder
    class NoExt(MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == 'mmcv._ext':
                raise ModuleNotFoundError("No module named 'mmcv._ext'", name=name)
    sys.meta_path.insert(0, NoExt())
"""


def run_python(code: str) -> str:
    """Run code in a new interpreter and return its output."""
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# References, written from the definitions.


def reference_nms(boxes, scores, threshold, offset=0):
    """Greedy, one box at a time, the threshold in single precision as in mmcv."""
    return greedy_nms(boxes, scores, float(np.float32(threshold)), offset)


def greedy_nms(boxes, scores, threshold, offset=0):
    boxes, order = boxes.numpy(), scores.sort(descending=True).indices.numpy()
    areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low + offset).clip(min=0).prod(1)
        with np.errstate(invalid='ignore'):
            iou = shared / (areas[best] + areas[order] - shared)
        order = order[~(iou.astype(np.float64) > threshold)]
    return torch.tensor(kept, dtype=torch.int64)


def reference_roi_align(x, rois, scale, size, ratio, aligned):
    """One RoI at a time through grid_sample in float64, differentiable in x (B, C, H, W)."""
    height, width = x.shape[2:]
    dtype, x = x.dtype, x.double()
    pooled = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = (c * scale - 0.5 * aligned for c in box)
        lengths = [max(e - s, 0 if aligned else 1) for s, e in ((y1, y2), (x1, x2))]
        grids = [ratio or int(np.ceil(n / b)) for n, b in zip(lengths, size, strict=True)]
        if 0 in grids:
            pooled.append(x.new_zeros(x.shape[1], *size))
            continue
        y, x_at = (
            start + (torch.arange(b * g, dtype=x.dtype) + 0.5) * n / (b * g)
            for start, n, b, g in zip((y1, x1), lengths, size, grids, strict=True)
        )
        inside = ((y >= -1) & (y <= height))[:, None] & ((x_at >= -1) & (x_at <= width))
        where = torch.stack(
            [
                (2 * x_at / (width - 1) - 1).expand(len(y), -1),
                (2 * y / (height - 1) - 1)[:, None].expand(-1, len(x_at)),
            ],
            dim=-1,
        )
        values = F.grid_sample(
            x[int(image)][None], where[None], padding_mode='border', align_corners=True
        )
        values = (values[0] * inside).unflatten(2, (size[1], -1)).unflatten(1, (size[0], -1))
        pooled.append(values.mean((2, 4)))
    return torch.stack(pooled).to(dtype) if pooled else x.new_zeros(0, x.shape[1], *size)


def fake_torchvision_roi_align(x, rois, scale, height, width, ratio, aligned):
    return reference_roi_align(x.detach(), rois, scale, (height, width), ratio, aligned)


def fake_torchvision_roi_align_backward(
    grad, rois, scale, height, width, batch, channels, rows, columns, ratio, aligned
):
    with torch.enable_grad():
        x = grad.new_zeros(batch, channels, rows, columns).requires_grad_()
        y = reference_roi_align(x, rois, scale, (height, width), ratio, aligned) + 0 * x.sum()
        return torch.autograd.grad(y, x, grad)[0]


def fake_torchvision_nms(boxes, scores, threshold):
    """Like torchvision: equal scores by index, the threshold in double precision."""
    order = scores.sort(descending=True, stable=True).indices
    best_first = -torch.arange(len(order), dtype=torch.float32)
    return order[greedy_nms(boxes[order], best_first, threshold)]


@pytest.fixture
def fake_torchvision(monkeypatch):
    """A torchvision whose operators are the references above."""
    operators = SimpleNamespace(
        nms=fake_torchvision_nms,
        roi_align=fake_torchvision_roi_align,
        _roi_align_backward=fake_torchvision_roi_align_backward,
    )
    monkeypatch.setitem(sys.modules, 'torchvision', ModuleType('torchvision'))
    monkeypatch.setattr(torch.ops, 'torchvision', operators, raising=False)
    return operators


@pytest.fixture(params=['pytorch', 'torchvision'])
def ops(request, monkeypatch, fake_torchvision):
    """mmcv.ops with the nms and roi_align of one provider, whatever is installed."""
    ensure_mmcv_ops()
    functions = SimpleNamespace(**mmcv_ops.OPS[request.param])
    for name in ('nms', 'roi_align'):
        module = importlib.import_module(f'mmcv.ops.{name}')
        monkeypatch.setattr(module, 'ext_module', functions)
    return importlib.import_module('mmcv.ops')


@pytest.fixture(scope='module')
def compiled():
    """Inputs and outputs of mmcv's compiled CPU ops."""
    with np.load(ROOT / 'tests' / 'data' / 'mmcv_ops.npz') as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def random_rois(count, batch=2, extent=120.0):
    corner = torch.rand(count, 2) * extent * 1.3 - 0.2 * extent
    size = torch.rand(count, 2) ** 2 * extent
    image = torch.randint(batch, (count, 1)).float()
    return torch.cat([image, corner, corner + size], dim=1)


def random_boxes(count, extent=300.0, size=80.0):
    corner = torch.rand(count, 2) * extent
    return torch.cat([corner, corner + torch.rand(count, 2) * size], dim=1)


# Non-maximum suppression


def in_local_order(keep, scores):
    """Kept indices with equal scores in the undefined order of the installed torch's sort."""
    rank = scores.sort(descending=True).indices.argsort()
    return keep[rank[keep].argsort()]


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
def test_nms_equals_compiled(ops, compiled, threshold, offset):
    boxes, scores = compiled['nms/boxes'], compiled['nms/scores']
    dets, keep = ops.nms(boxes, scores, threshold, offset=offset)
    expected = compiled[f'nms/keep_iou{threshold}_offset{offset}']
    assert torch.equal(keep, in_local_order(expected, scores))
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[keep])


def test_nms_options_equal_compiled(ops, compiled):
    boxes, scores = compiled['nms/boxes'], compiled['nms/scores']
    keep = ops.nms(boxes, scores, 0.5, score_threshold=0.4, max_num=17)[1]
    assert torch.equal(keep, compiled['nms/keep_iou0.5_score0.4_max17'])
    config = dict(type='nms', iou_threshold=0.5)
    keep = ops.batched_nms(boxes, scores, compiled['nms/labels'], config)[1]
    assert torch.equal(keep, in_local_order(compiled['nms/batched_keep_iou0.5'], scores))


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.05, 0.5, 0.9])
def test_nms_equals_greedy_over_several_blocks(ops, threshold, offset):
    boxes, scores = random_boxes(1000), torch.rand(1000)
    keep = ops.nms(boxes, scores, threshold, offset=offset)[1]
    assert torch.equal(keep, reference_nms(boxes, scores, threshold, offset))


def test_nms_with_equal_scores_and_integer_coordinates(ops):
    # With integer coordinates many IoUs equal the threshold: those boxes stay.
    boxes, scores = random_boxes(600, extent=25, size=12).round(), (torch.rand(600) * 9).round()
    for threshold in (0.25, 0.3, 0.5, 0.7):
        keep = ops.nms(boxes, scores, threshold)[1]
        assert torch.equal(keep, reference_nms(boxes, scores, threshold))


def test_nms_follows_a_chain_longer_than_a_block(ops):
    # Each box suppresses only the next, so every second one stays.
    left = torch.arange(600.0)
    boxes = torch.stack([left, left * 0, left + 3, left * 0 + 1], dim=1)
    keep = ops.nms(boxes, 1 - left / 1000, 0.4)[1]
    assert keep.tolist() == list(range(0, 600, 2))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_nms_dtypes(ops, dtype):
    boxes, scores = random_boxes(200).to(dtype), torch.randperm(200).to(dtype)
    keep = ops.nms(boxes, scores, 0.5)[1]
    assert torch.equal(keep, reference_nms(boxes.float(), scores.float(), 0.5))


def test_nms_of_empty_equal_and_strided_boxes(ops):
    none = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert none[0].shape == (0, 5) and none[1].shape == (0,) and none[1].dtype == torch.int64
    one = random_boxes(1)
    assert ops.nms(one, torch.rand(1), 0.5)[1].tolist() == [0]
    assert len(ops.nms(one.expand(50, 4), torch.ones(50), 0.5)[1]) == 1
    points = torch.zeros(3, 4)
    assert len(ops.nms(points, torch.rand(3), 0.5)[1]) == 3, '0 / 0 suppresses nothing'
    assert len(ops.nms(points, torch.rand(3), 0.5, offset=1)[1]) == 1
    strided = random_boxes(40).repeat(1, 2)[::2, :4]
    scores = torch.rand(40)[::2]
    assert torch.equal(ops.nms(strided, scores, 0.1)[1], reference_nms(strided, scores, 0.1))


# RoI align


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [0, 1])
def test_roi_align_equals_compiled(ops, compiled, aligned, ratio, mode):
    x = compiled['roi/x'].clone().requires_grad_()
    y = ops.roi_align(x, compiled['roi/rois'], (7, 5), SCALE, ratio, mode, bool(aligned))
    y.backward(compiled['roi/w'])
    name = f'roi/aligned{aligned}_ratio{ratio}_{mode}'
    for value, expected in ((y, compiled[f'{name}/y']), (x.grad, compiled[f'{name}/dx'])):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('ratio', [0, 1, 3])
def test_roi_align_equals_reference(ops, monkeypatch, ratio, aligned, layout):
    # Small chunks, so that groups and chunks are split often.
    monkeypatch.setattr(roi_align, '_CHUNK_ELEMENTS', 2000)
    x = torch.randn(2, 3, 24, 36).to(memory_format=layout).requires_grad_()
    rois = random_rois(60)
    y = ops.roi_align(x, rois, (4, 6), SCALE, ratio, 'avg', aligned)
    expected = reference_roi_align(x, rois, SCALE, (4, 6), ratio, aligned)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn_like(y)
    grads = [torch.autograd.grad(out, x, weight)[0] for out in (y, expected)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_max_is_the_maximum_of_the_samples(ops, monkeypatch, aligned):
    monkeypatch.setattr(roi_align, '_CHUNK_ELEMENTS', 2000)
    # With one sample per bin, average and maximum are equal, and so are their gradients.
    x = torch.randn(2, 3, 24, 36, requires_grad=True)
    rois = random_rois(30)
    outs = [ops.roi_align(x, rois, (4, 6), SCALE, 1, mode, aligned) for mode in ('avg', 'max')]
    torch.testing.assert_close(*outs)
    weight = torch.randn_like(outs[0])
    torch.testing.assert_close(*(torch.autograd.grad(y, x, weight)[0] for y in outs))
    # The samples of a bin are the bins of a grid of twice the resolution.
    fine = ops.roi_align(x, rois, (8, 12), SCALE, 1, 'avg', True)
    coarse = ops.roi_align(x, rois, (4, 6), SCALE, 2, 'max', True)
    torch.testing.assert_close(coarse, F.max_pool2d(fine, 2))


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_pools_rois_independently(ops, mode):
    x, rois = torch.randn(2, 3, 24, 36), random_rois(40)
    together, *alone = (
        ops.roi_align(x, part, (4, 6), SCALE, 0, mode, False) for part in (rois, *rois.split(1))
    )
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_of_degenerate_rois(ops, mode):
    x = torch.randn(2, 3, 24, 36)
    box = [8.0, 8.0, 40.0, 50.0]
    rois = torch.tensor(
        [
            [1, 20, 30, 20, 30],  # no area
            [0, 400, 400, 480, 480],  # outside
            [0, -90, -90, -30, -20],
            [1, 40, 50, 8, 8],  # negative size
            [0, float('nan'), 8, 40, 50],
            [0, 8, 8, float('inf'), 50],
            [1, *box],
        ]
    )
    y = ops.roi_align(x, rois, (7, 7), SCALE, 0, mode, True)
    assert y.isfinite().all()
    assert (y[1:3] == 0).all(), 'samples outside count as zeros'
    assert (y[[0, 3, 4, 5]] == (0 if mode == 'avg' else -10000)).all(), 'no samples'
    fixed, point = (
        ops.roi_align(x, roi, (7, 7), SCALE, 2, mode, True)
        for roi in (rois[3:4], torch.tensor([[1.0, 40, 50, 40, 50]]))
    )
    assert torch.equal(fixed, point), 'a negative size counts as zero'
    swapped = ops.roi_align(x.flip(0), torch.tensor([[0.0, *box]]), (7, 7), SCALE, 0, mode, True)
    torch.testing.assert_close(y[6:], swapped)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_without_rois(ops, mode):
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    y = ops.roi_align(x, torch.zeros(0, 5), (7, 7), SCALE, 0, mode, True)
    y.sum().backward()
    assert y.shape == (0, 3, 7, 7)
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_computes_half_precision_in_single(ops, dtype, mode):
    x, rois = torch.randn(2, 3, 24, 36).to(dtype), random_rois(20).to(dtype)
    y = ops.roi_align(x.requires_grad_(), rois, (4, 4), SCALE, 2, mode, True)
    expected = ops.roi_align(x.detach().float(), rois.float(), (4, 4), SCALE, 2, mode, True)
    assert torch.equal(y, expected.to(dtype))
    y.sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


@pytest.mark.parametrize('ops', ['pytorch'], indirect=True)
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_gradcheck(ops, mode):
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = random_rois(3, batch=1, extent=24).double()
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois, (2, 2), SCALE, 2, mode, True), x, eps=1e-7
    )


def test_deterministic_mode_does_not_use_the_torchvision_gradient(monkeypatch, fake_torchvision):
    monkeypatch.delattr(fake_torchvision, '_roi_align_backward')
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    grad = torch.zeros(1, 1, 4, 4)
    roi_align.torchvision_roi_align_backward(
        torch.ones(1, 1, 2, 2),
        torch.tensor([[0.0, 0, 0, 3, 3]]),
        grad.new_zeros(0),
        grad.new_zeros(0),
        grad,
        aligned_height=2,
        aligned_width=2,
        spatial_scale=1.0,
        sampling_ratio=0,
        pool_mode=1,
        aligned=True,
    )
    torch.testing.assert_close(grad.sum(), torch.tensor(4.0))


# Registration


@pytest.fixture
def no_ext(monkeypatch):
    """As in a new process with neither compiled ops of mmcv nor torchvision."""
    hide_ext(monkeypatch)
    monkeypatch.setitem(sys.modules, 'torchvision', None)


def hide_ext(monkeypatch, finder=None):
    importlib.import_module('mmcv')
    ours = (mmcv_ops.ExtFinder, ModulePatch)
    finders = [f for f in sys.meta_path if not isinstance(f, ours)]
    missing = ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext')
    monkeypatch.setattr(sys, 'meta_path', [finder or RaisingFinder(missing), *finders])
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    # monkeypatch restores it at the end.
    monkeypatch.delattr('mmcv._ext', raising=False)


class RaisingFinder:
    def __init__(self, error):
        self.error = error

    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            raise self.error


def test_pytorch_provides_missing_ops(no_ext):
    assert ensure_mmcv_ops() == 'pytorch'
    ext, finders = sys.modules['mmcv._ext'], list(sys.meta_path)
    assert ensure_mmcv_ops() == 'pytorch' == mmcv_ops.ops_provider()
    assert sys.modules['mmcv._ext'] is ext and sys.meta_path == finders
    assert importlib.import_module('mmcv')._ext is ext
    assert ext.nms is nms.nms


@pytest.mark.parametrize('provider', ['pytorch', 'torchvision'])
def test_roi_align_with_use_torchvision(monkeypatch, fake_torchvision, provider):
    importlib.import_module('mmcv.ops')
    hide_ext(monkeypatch)
    if provider == 'pytorch':
        monkeypatch.setitem(sys.modules, 'torchvision', None)
    assert ensure_mmcv_ops() == provider
    monkeypatch.delitem(sys.modules, 'mmcv.ops.roi_align')
    spec = importlib.util.find_spec('mmcv.ops.roi_align')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pool = module.RoIAlign((4, 6), SCALE, 2, use_torchvision=True)
    assert pool.use_torchvision == (provider == 'torchvision')
    if provider == 'pytorch':
        x, rois = torch.randn(2, 3, 24, 36), random_rois(10)
        assert torch.equal(pool(x, rois), module.roi_align(x, rois, (4, 6), SCALE, 2))


def test_replacement_reloads_and_its_ops_pickle(no_ext):
    ensure_mmcv_ops()
    ext = sys.modules['mmcv._ext']
    assert importlib.util.find_spec('mmcv._ext') is ext.__spec__
    assert importlib.reload(ext) is ext and ensure_mmcv_ops() == 'pytorch'
    assert pickle.loads(pickle.dumps(ext.nms)) is ext.nms
    pickle.loads(pickle.dumps(ext.nms_rotated))
    assert not hasattr(ext, '__path__')


def test_other_ops_raise_with_their_name(no_ext):
    ensure_mmcv_ops()
    with pytest.raises(NotImplementedError, match='nms_rotated'):
        sys.modules['mmcv._ext'].nms_rotated(torch.zeros(1, 5))


def test_torchvision_provides_missing_ops(monkeypatch, fake_torchvision):
    hide_ext(monkeypatch)
    assert ensure_mmcv_ops() == 'torchvision'
    assert sys.modules['mmcv._ext'].nms is nms.torchvision_nms


@pytest.mark.parametrize(
    'source',
    [
        "raise RuntimeError('operator torchvision::nms does not exist')",
        "raise AttributeError('partially initialized module')",
        '',
    ],
)
def test_broken_torchvision_is_not_used(monkeypatch, tmp_path, source):
    hide_ext(monkeypatch)
    (tmp_path / 'torchvision.py').write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'torchvision', raising=False)
    monkeypatch.setattr(torch.ops, 'torchvision', SimpleNamespace(), raising=False)
    assert ensure_mmcv_ops() == 'pytorch'
    sys.modules.pop('torchvision', None)


def test_compiled_ops_are_left_untouched(monkeypatch):
    hide_ext(monkeypatch)
    ext = ModuleType('mmcv._ext')
    monkeypatch.setitem(sys.modules, 'mmcv._ext', ext)
    names = dir(ext)
    assert ensure_mmcv_ops() == 'mmcv' == mmcv_ops.ops_provider()
    assert sys.modules['mmcv._ext'] is ext
    assert dir(ext) == names
    assert [finder for finder in sys.meta_path if isinstance(finder, mmcv_ops.ExtFinder)] == []


@pytest.mark.parametrize(
    'error', [ImportError('undefined symbol: _ZN3c10'), OSError('libcudart.so.11: cannot open')]
)
def test_broken_compiled_ops_are_replaced_with_a_warning(monkeypatch, error):
    hide_ext(monkeypatch, RaisingFinder(error))
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    with pytest.warns(UserWarning, match=str(error)) as caught:
        assert ensure_mmcv_ops() == 'pytorch'
    assert len(caught) == 1


def test_missing_mmcv_raises_with_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    with pytest.raises(ImportError, match=r'mmfocalnet\[onedl\].*mmfocalnet\[openmmlab\]'):
        register_on_first_use()


def test_modules_that_mmcv_lacks_are_reported_as_such(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'cv2'", name='cv2')

    monkeypatch.setattr(mmcv_ops.importlib, 'import_module', fail)
    with pytest.raises(ModuleNotFoundError, match='cv2'):
        ensure_mmcv_ops()


@pytest.mark.parametrize('rank, worker, lines', [(0, None, 1), (1, None, 0), (0, object(), 0)])
def test_provider_is_logged_once_by_the_main_process(no_ext, monkeypatch, rank, worker, lines):
    ensure_mmcv_ops()
    logged = []
    monkeypatch.setattr('mmengine.logging.print_log', lambda *a, **k: logged.append((a, k)))
    monkeypatch.setattr('mmengine.dist.is_main_process', lambda: rank == 0)
    monkeypatch.setattr(torch.utils.data, 'get_worker_info', lambda: worker)
    mmcv_ops.log_ops_provider.cache_clear()
    for _ in range(2):
        nms.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0)
    mmcv_ops.log_ops_provider.cache_clear()
    assert len(logged) == lines
    if lines:
        (message,), options = logged[0]
        assert 'PyTorch' in message and options == dict(logger='current', level=logging.INFO)


@pytest.mark.e2e
def test_new_process_imports_mmdet_and_raises_on_missing_ops():
    printed = run_python(
        NO_EXT
        + """
    import pytest
    with pytest.raises(ImportError):
        import mmdet.models  # partly imported before, as in a notebook
    from mmfocalnet.compat import ensure_mmcv_ops
    assert ensure_mmcv_ops() in ('pytorch', 'torchvision')
    print('no output from here')
    import mmcv.ops, mmdet.models, mmseg.models, torch
    from mmcv.utils import collect_env
    assert collect_env()['MMCV Compiler'].startswith('not compiled')
    assert collect_env()['MMCV CUDA Compiler'].startswith('not compiled')
    with pytest.raises(NotImplementedError, match='nms_rotated'):
        mmcv.ops.nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)
    print('to here')
    for _ in range(2):
        mmcv.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        mmcv.ops.sigmoid_focal_loss(torch.zeros(1, 4), torch.tensor([0]))
    """
    )
    start, end, line = printed.strip().split('\n')[-3:]
    assert (start, end) == ('no output from here', 'to here')
    assert 'mmcv ops:' in line, 'logged once, at the first op'
