"""model-index.yml and its metafiles list every config once, with the figures of the paper."""

from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS as REGISTRY
from mmengine.registry import DefaultScope

from mmfocalnet.released import DETECTORS, RELEASED

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / 'tests/data/paper.yaml'
LEAVES = {
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob('configs/*/*.py')
    if path.parent.name not in ('bccd', 'demo') and not path.parent.name.startswith('_')
}


def load(path):
    return yaml.safe_load((ROOT / path).read_text())


INDEX = load('model-index.yml')['Import']
METAFILES = {path: load(path) for path in INDEX}
MODELS = [model for metafile in METAFILES.values() for model in metafile['Models']]


def test_every_folder_has_a_metafile_in_the_index():
    assert sorted(INDEX) == sorted({f'{Path(leaf).parent}/metafile.yml' for leaf in LEAVES})


def test_every_config_is_listed_once():
    assert sorted(model['Config'] for model in MODELS) == sorted(LEAVES)


def test_names_are_folder_and_file():
    # mim search compares in lower case.
    for model in MODELS:
        config = Path(model['Config'])
        assert model['Name'] == f'{config.parent.name}_{config.stem}' == model['Name'].lower()


def test_a_metafile_is_one_collection_with_a_readme_and_a_unique_name():
    names = []
    for path, metafile in METAFILES.items():
        (collection,) = metafile['Collections']
        names.append(collection['Name'])
        # mim resolves configs from the index, readmes from their metafile.
        assert (ROOT / path).with_name(collection['README']).is_file()
        for model in metafile['Models']:
            assert model['In Collection'] == collection['Name']
            assert Path(model['Config']).parent == Path(path).parent
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_the_schedule_is_that_of_the_config(model):
    loop = Config.fromfile(ROOT / model['Config']).train_cfg
    metadata = model['Metadata']
    assert metadata.get('Epochs') == loop.get('max_epochs')
    assert metadata.get('Iterations') == loop.get('max_iters')


def counts(row):
    return {'Parameters (M)': row['params'], 'FLOPs (G)': row['flops']}


def paper_figures(paper):
    """Yield counts and metrics of each config whose network the paper reports."""
    for (letter, size), field in product(
        {'t': 'tiny', 's': 'small', 'b': 'base'}.items(), ('srf', 'lrf')
    ):
        name = f'focalnet_{letter}_srf' if field == 'srf' else f'focalnet_{letter}'
        row = paper['mask_rcnn_coco'][f'{size}_{field}']
        for schedule in ('1x', '3x'):
            metrics = {'box AP': row[f'box_{schedule}'], 'mask AP': row[f'mask_{schedule}']}
            yield f'mask_rcnn/{name}_{schedule}', (counts(row), metrics)
        row = paper['classification'][f'{size}_{field}']
        yield f'imagenet/{name}', (counts(row), {'Top 1 Accuracy': row['top1']})
        row = paper['upernet_ade20k'][f'{size}_{field}']
        metrics = {'mIoU': row['miou'], 'mIoU(ms+flip)': row['miou_ms']}
        yield f'upernet/{name}_160k_ade20k', (counts(row), metrics)
    for key, row in paper['other_detectors_3x'].items():
        detector, field = key.split('_tiny_')
        folder = 'cascade_rcnn' if detector == 'cascade_mask_rcnn' else detector
        name = 'focalnet_t_srf_3x' if field == 'srf' else 'focalnet_t_3x'
        yield f'{folder}/{name}', (counts(row), {'box AP': row['box']})
    row = paper['mask2former']['large_coco_panoptic']
    metrics = {'PQ': row['pq'], 'mask AP': row['ap'], 'mIoU': row['miou']}
    yield 'mask2former/focalnet_l_coco_panoptic', ({'Parameters (M)': row['params']}, metrics)
    row = paper['mask2former']['large_ade20k_semantic']
    metrics = {'mIoU': row['miou'], 'mIoU(ms+flip)': row['miou_ms']}
    yield 'mask2former/focalnet_l_160k_ade20k_640', ({'Parameters (M)': row['params']}, metrics)


def stated_counts(model):
    paper = model['Metadata'].get('Paper', {})
    return {figure: paper[figure] for figure in ('Parameters (M)', 'FLOPs (G)') if figure in paper}


def test_figures_are_those_of_the_paper():
    stated = {
        model['Config'].removeprefix('configs/').removesuffix('.py'): (
            stated_counts(model),
            {key: n for result in model['Results'] for key, n in result['Metrics'].items()},
        )
        for model in MODELS
        if 'Paper' in model['Metadata'] or ('Results' in model and 'Weights' not in model)
    }
    assert stated == dict(paper_figures(yaml.safe_load(PAPER.read_text())))


def test_released_detectors_have_the_published_results():
    """Those of the pages that release the weights."""
    ap = {
        'dino-focalnet-l': 63.5,
        'dino-focalnet-l-fl3-12e': 57.5,
        'dino-focalnet-l-fl3-36e': 58.3,
        'dino-focalnet-l-fl4-12e': 58.0,
        'dino-focalnet-l-fl4-5scale-12e': 58.5,
    }
    stated = {model['Weights']: model for model in MODELS if 'Weights' in model}
    assert len(stated) == len(DETECTORS)
    for name in DETECTORS:
        model = stated[RELEASED[name].url]
        assert model['Config'] == f'configs/{RELEASED[name].config}'
        results = [result['Metrics'] for result in model.get('Results', [])]
        assert results == ([{'box AP': ap[name]}] if name in ap else [])


@pytest.mark.parametrize(
    'model', [m for m in MODELS if 'Counted' in m['Metadata']], ids=lambda m: m['Name']
)
def test_counted_parameters(model):
    cfg = Config.fromfile(ROOT / model['Config'])
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        parameters = sum(p.numel() for p in REGISTRY.build(cfg.model).parameters())
    counted = model['Metadata']['Counted']['Parameters (M)']
    assert counted == pytest.approx(parameters / 1e6, abs=0.005)
