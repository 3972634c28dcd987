"""Count the Mask R-CNN configs beside the paper's figures: python tools/paper_table.py"""

import argparse
import os
from functools import partial
from pathlib import Path

import torch
import yaml
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

import mmfocalnet  # noqa: F401 - registers FocalNet

ROOT = Path(__file__).resolve().parents[1]
SIZE = (800, 1280)  # height and width of the paper's detection FLOPs
COLUMNS = (
    'config',
    'params (M), counted',
    "paper's",
    'FLOPs (G), counted',
    "paper's",
    "box AP 1x / 3x (paper's)",
    "mask AP 1x / 3x (paper's)",
)


def count(config):
    """Parameters in M and multiply-accumulates in G of a detector, 1000 box RoIs in all."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    sample = DetDataSample(
        metainfo=dict(img_shape=SIZE, batch_input_shape=SIZE, scale_factor=(1, 1))
    )
    model.forward = partial(model.forward, data_samples=[sample])
    with torch.no_grad():
        info = get_model_complexity_info(
            model, None, inputs=(torch.randn(1, 3, *SIZE),), show_table=False, show_arch=False
        )
    return info['params'] / 1e6, info['flops'] / 1e9


def table_rows(models):
    """One row per network; its schedules share parameters and FLOPs."""
    networks = {}
    for model in models:
        networks.setdefault(model['Name'].rsplit('_', 1)[0], []).append(model)
    for name, schedules in networks.items():
        params, flops = count(schedules[0]['Config'])
        paper = schedules[0]['Metadata']['Paper']
        metrics = [{k: v for r in m['Results'] for k, v in r['Metrics'].items()} for m in schedules]
        suffixes = ','.join(model['Name'].rsplit('_', 1)[1] for model in schedules)
        yield (
            f'`{name}_{{{suffixes}}}`',
            f'{params:.1f}',
            paper['Parameters (M)'],
            f'{flops:.0f}',
            paper['FLOPs (G)'],
            ' / '.join(str(metric['box AP']) for metric in metrics),
            ' / '.join(str(metric['mask AP']) for metric in metrics),
        )


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    os.chdir(ROOT)
    # The counter warns of every operator that it leaves out: none is a product.
    MMLogger.get_instance('paper_table', log_level='ERROR')
    metafile = yaml.safe_load(Path('configs/mask_rcnn/metafile.yml').read_text())
    print('|', ' | '.join(COLUMNS), '|')
    print('|' + '---|' * len(COLUMNS))
    for row in table_rows(metafile['Models']):
        print('|', ' | '.join(map(str, row)), '|', flush=True)


if __name__ == '__main__':
    main()
