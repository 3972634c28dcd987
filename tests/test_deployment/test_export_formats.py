"""Files of each format, written and checked by tools/export.py."""

import json

import numpy as np
import pytest
from forked_tools import ROOT
from narrow_models import MASK2FORMER_SEMANTIC, UPERNET

from mmfocalnet.deployment.formats import load

pytestmark = [pytest.mark.export, pytest.mark.timeout(600)]
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
pytest.importorskip('openvino')

SHALLOW = ['model.backbone.depths=[1,1,1,1]', 'model.backbone.focal_levels=1']
MODELS = {
    'upernet': UPERNET,
    'shallow upernet': [*UPERNET, *SHALLOW],
    'mask2former_semantic': MASK2FORMER_SEMANTIC,
}
FIXED = ['--size', 64, 96]


@pytest.fixture
def export(tool, tmp_path):
    def run(name, suffix, *flags):
        out = tmp_path / f'model{suffix}'
        code, stdout, stderr = tool(
            'export', ROOT / f'configs/demo/{name.split()[-1]}.py', '--out', out, *flags,
            '--cfg-options', *MODELS[name],
        )  # fmt: skip
        assert code == 0, stdout + stderr
        return out, stdout

    return run


def test_onnx(export):
    out, stdout = export('upernet', '.onnx', *FIXED)
    assert stdout.count('checked with 1x64x96x3') == 1
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert not {'Dropout', 'RandomUniform'} & {node.op_type for node in model.graph.node}
    assert [value.name for value in model.graph.input] == ['image']
    assert [value.name for value in model.graph.output] == ['seg_logits']
    assert next(opset.version for opset in model.opset_import if not opset.domain) >= 18
    assert str(ROOT).encode() not in out.read_bytes()


@pytest.mark.parametrize('flags', [['--dtype', 'float32'], ['--raw'], ['--fp16']])
def test_inputs_and_precision(export, flags):
    full, _ = export('upernet', '.onnx', *FIXED)
    size = full.stat().st_size
    out, _ = export('upernet', '.onnx', *FIXED, *flags)
    content = json.loads(out.with_suffix('.json').read_text())
    dtype = 'uint8' if flags == ['--fp16'] else 'float32'
    assert content['input']['dtype'] == dtype
    shape = (1, 3, 64, 96) if flags == ['--raw'] else (1, 64, 96, 3)
    assert content['input']['layout'] == ('BCHW' if flags == ['--raw'] else 'BHWC')
    outputs = load(out, 'onnx', ['seg_logits'])(np.zeros(shape, dtype))
    assert outputs['seg_logits'].shape == (1, 7, 64, 96)
    assert outputs['seg_logits'].dtype == np.float32
    if flags == ['--fp16']:  # the nodes of a narrow model take as much as its weights
        assert out.stat().st_size < 0.8 * size


@pytest.mark.parametrize('flags', [[], ['--fp16']])
def test_openvino(export, flags):
    out, stdout = export('upernet', '.xml', '--format', 'openvino', *FIXED, *flags)
    assert 'checked with 1x64x96x3' in stdout
    assert sorted(path.suffix for path in out.parent.iterdir()) == ['.bin', '.json', '.xml']
    weights = out.with_suffix('.bin').stat().st_size
    assert (weights < 400_000) == (flags == ['--fp16'])


@pytest.mark.parametrize(
    ('format', 'suffix'), [('onnx', '.onnx'), ('openvino', '.xml'), ('torch-export', '.pt2')]
)
def test_dynamic_sizes(export, format, suffix):
    """With one block per stage: recording symbolic sizes takes seconds per block."""
    out, stdout = export('shallow upernet', suffix, '--format', format, '--dynamic')
    assert stdout.count('checked with 1x') == stdout.count('checked with 2x') == 3
    run = load(out, format, ['seg_logits'])
    assert run(np.zeros((3, 101, 77, 3), np.uint8))['seg_logits'].shape == (3, 7, 101, 77)
    assert json.loads(out.with_suffix('.json').read_text())['size'] is None
    if format == 'onnx':
        [image] = onnx.load(out).graph.input
        names = [dim.dim_param for dim in image.type.tensor_type.shape.dim]
        assert names == ['batch', 'height', 'width', '']


@pytest.mark.parametrize('flags', [[], ['--no-grid-sample'], ['--fp16']])
def test_mask2former(export, flags):
    out, _ = export('mask2former_semantic', '.onnx', *FIXED, *flags)
    operators = {node.op_type for node in onnx.load(out).graph.node}
    assert ('GridSample' in operators) == (flags != ['--no-grid-sample'])
