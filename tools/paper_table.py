"""Count parameters and FLOPs of the configs beside the paper's: python tools/paper_table.py"""

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
from mmengine.registry import init_default_scope

import mmfocalnet  # noqa: F401 - registers FocalNet

ROOT = Path(__file__).resolve().parents[1]
SIZE = (800, 1280)  # height and width of the paper's detection FLOPs
COLUMNS = (
    'config',
    'params (M), counted',
    'paper',
    'FLOPs (G), counted',
    'paper',
    'box AP (paper)',
    'mask AP (paper)',
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--family', default='mask_rcnn', help='folder of configs/')
    return parser.parse_args()


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


def main():
    args = parse_args()
    os.chdir(ROOT)
    metafile = yaml.safe_load(Path(f'configs/{args.family}/metafile.yml').read_text())
    print('|', ' | '.join(COLUMNS), '|')
    print('|' + '---|' * len(COLUMNS))
    for model in metafile['Models']:
        params, flops = count(model['Config'])
        paper = model['Metadata']['Paper']
        metrics = {k: v for result in model['Results'] for k, v in result['Metrics'].items()}
        row = (
            f'[`{model["Name"]}`]({model["Config"]})',
            f'{params:.1f}',
            paper['Parameters (M)'],
            f'{flops:.0f}',
            paper['FLOPs (G)'],
            metrics['box AP'],
            metrics['mask AP'],
        )
        print('|', ' | '.join(map(str, row)), '|', flush=True)


if __name__ == '__main__':
    main()
