"""Count the networks of Tables 5 to 9 beside the paper's figures: python tools/paper_table.py"""

import argparse
import sys
import warnings
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path

import torch
import yaml
from mmcv.cnn import get_model_complexity_info
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from mmfocalnet.errors import UserError
from mmfocalnet.files import replacing
from mmfocalnet.launch import one_sentence_errors

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / 'docs/model_zoo.md'
BEGIN, END = '<!-- paper_table: begin -->', '<!-- paper_table: end -->'
TABLES = {
    'Table 5: Mask R-CNN on COCO': ['mask_rcnn'],
    'Table 6: other detectors on COCO': ['cascade_rcnn', 'sparse_rcnn', 'atss'],
    'Table 7: UperNet on ADE20K': ['upernet'],
    'Tables 8 and 9: Mask2Former on ADE20K and COCO': ['mask2former'],
}
FOLDERS = [folder for folders in TABLES.values() for folder in folders]
SIZES = {'mmdet': (800, 1280), 'mmseg': (512, 2048)}  # height and width of the paper's FLOPs
BOX_ROIS, MASK_ROIS = 1000, 100  # the paper's, at every stage of a cascade


# ------------------------------------------------------------------------------------------------
# Counting
# ------------------------------------------------------------------------------------------------


def build(cfg, device='meta'):
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(cfg.model).eval()


def parameters(cfg):
    """Millions of parameters."""
    return sum(p.numel() for p in build(cfg).parameters()) / 1e6


def flops(cfg):
    """Billions of multiply-accumulates for one image, by the counter that gives the paper's.

    It counts layer by layer: products of two activations, as in attention, and interpolations
    are left out.
    """
    # Meta tensors have a shape only, which is quick, but Mask2Former goes by values.
    model = build(cfg, 'cpu' if 'Mask2FormerHead' in cfg.pretty_text else 'meta')
    # As training converts them. The counter leaves them out, and so does the paper.
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    size = SIZES[cfg.default_scope]
    take_images_alone(model, size)
    for module in model.modules():
        fix_rois(module)
    with torch.no_grad():
        count, _ = get_model_complexity_info(
            model, (3, *size), print_per_layer_stat=False, as_strings=False
        )
    return count / 1e9


FIGURES = {'Parameters (M)': parameters, 'FLOPs (G)': flops}


def take_images_alone(model, size):
    """Give the model's forward pass what it needs beside the image."""
    from mmdet.models import Mask2FormerHead, SparseRCNN
    from mmdet.structures import DetDataSample

    shapes = dict(ori_shape=size, img_shape=size, batch_input_shape=size, scale_factor=(1, 1))
    samples = [DetDataSample(metainfo=shapes)]
    # Sparse R-CNN's tensor mode fits boxes to annotations; prediction runs the same layers.
    mode = 'predict' if isinstance(model, SparseRCNN) else 'tensor'
    model.forward = partial(model.forward, data_samples=samples, mode=mode)
    head = getattr(model, 'decode_head', None)
    if isinstance(head, Mask2FormerHead):  # mmseg's tensor mode keeps the samples from it
        head.forward = partial(head.forward, batch_data_samples=samples)


def fix_rois(module):
    """Replace what depends on the values of boxes by tensors of the shape that they give."""
    from mmdet.models import DIIHead, FCNMaskHead, RPNHead, SingleRoIExtractor

    if isinstance(module, RPNHead):
        proposals = InstanceData(bboxes=torch.empty(BOX_ROIS, 4, device='meta'))
        module.predict_by_feat = lambda *args, **kwargs: [proposals]
    elif isinstance(module, SingleRoIExtractor):
        size = module.roi_layers[0].output_size
        module.forward = lambda feats, rois: rois.new_empty(len(rois), module.out_channels, *size)
    elif isinstance(module, DIIHead):
        module.refine_bboxes = lambda bbox_results, **kwargs: [
            InstanceData(bboxes=bbox_results['rois'][:, 1:])
        ]
    elif isinstance(module, FCNMaskHead):
        # In tensor mode mmdet runs the mask heads of a cascade, and no others, on every box.
        module.register_forward_pre_hook(lambda module, args: (args[0][:MASK_ROIS],))
        module.register_forward_hook(
            lambda module, args, masks: masks.new_empty(BOX_ROIS, *masks.shape[1:])
        )


# ------------------------------------------------------------------------------------------------
# The networks of the paper, from the metafiles
# ------------------------------------------------------------------------------------------------


@dataclass
class Network:
    """A network of the paper with all its schedules, which share its counts."""

    name: str
    config: str  # of its first schedule
    paper: dict  # its figures, and how the paper counted them
    metrics: dict  # name to values, one per schedule


def networks(folder):
    """Those networks of one folder of configs that the paper reports."""
    metafile = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())
    schedules = {}
    for model in metafile['Models']:
        if 'Paper' in model['Metadata']:
            schedules.setdefault(model['Name'].rsplit('_', 1)[0], []).append(model)
    return [as_network(models) for models in schedules.values()]


def as_network(models):
    config, paper = models[0]['Config'], models[0]['Metadata']['Paper']
    name, last = config.removeprefix('configs/').removesuffix('.py').rsplit('_', 1)
    if len(models) > 1:
        last = '{' + ','.join(model['Name'].rsplit('_', 1)[1] for model in models) + '}'
    metrics = {}
    for model in models:
        for result in model['Results']:
            for key, value in result['Metrics'].items():
                metrics.setdefault(key, []).append(value)
    return Network(f'{name}_{last}', config, paper, metrics)


def shipped(figure, network):
    """A figure of the network as its config is."""
    return FIGURES[figure](Config.fromfile(ROOT / network.config))


def counted(figure, network):
    """A figure of the network with the setting of the backbone that the paper counted."""
    cfg = Config.fromfile(ROOT / network.config)
    cfg.model.backbone.update(network.paper.get('Counted as', {}))
    return FIGURES[figure](cfg)


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


def tables(folders):
    """All tables in Markdown, line by line as they are counted."""
    for title, members in TABLES.items():
        rows = [network for folder in members if folder in folders for network in networks(folder)]
        if rows:
            yield from ('', f'### {title}', '')
            yield from table(rows)


def table(rows):
    metrics = list(dict.fromkeys(key for network in rows for key in network.metrics))
    counts = [f'{figure}, {who}' for figure in FIGURES for who in ("paper's", 'counted', 'shipped')]
    columns = ['config', *counts, *(f"{key}, paper's" for key in metrics)]
    yield line(columns)
    yield '|' + '---|' * len(columns)
    for network in rows:
        counts = [cell for figure in FIGURES for cell in count_cells(figure, network)]
        values = [' / '.join(map(str, network.metrics.get(key, ['-']))) for key in metrics]
        yield line([f'`{network.name}`', *counts, *values])
    for network in rows:
        if 'Note' in network.paper:
            yield from ('', note(network))


def line(cells):
    return f'| {" | ".join(map(str, cells))} |'


def note(network):
    return f'`{network.name}`: {network.paper["Note"]}'


def count_cells(figure, network):
    ours = f'{shipped(figure, network):.2f}'
    if figure not in network.paper:
        return '-', '-', ours
    return network.paper[figure], f'{counted(figure, network):.2f}', ours


def around_markers(path):
    """What a file has before and after the tables."""
    text = path.read_text() if path.is_file() else ''
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f'{path} must have the lines {BEGIN} and {END}: the tables go between.')
    return before, after


def write_tables(path, text):
    """Replace what a file has between the markers: all of it or, if interrupted, nothing."""
    before, after = around_markers(path)
    with replacing(path) as new:
        new.write_text(f'{before}{BEGIN}\n{text}\n\n{END}{after}')


# ------------------------------------------------------------------------------------------------
# Check
# ------------------------------------------------------------------------------------------------


def agrees(printed, value):
    """Whether a value is within half a unit of the last printed digit."""
    unit = 10.0 ** Decimal(str(printed)).as_tuple().exponent
    return abs(value - printed) <= unit / 2


def check(folders):
    """Print how each figure of the paper stands to ours; return whether all agree."""
    good = True
    for network in (network for folder in folders for network in networks(folder)):
        for figure in (figure for figure in FIGURES if figure in network.paper):
            printed, value = network.paper[figure], counted(figure, network)
            good &= agrees(printed, value)
            verdict = 'agrees' if agrees(printed, value) else 'DIFFERS'
            print(
                f'{verdict}  {network.name}  {figure}: paper {printed}, counted {value:.2f}',
                flush=True,
            )
        if 'Note' in network.paper:
            print(f'        {note(network)}')
    return good


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folders', nargs='*', help=f'some of {" ".join(FOLDERS)} (default: all)')
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        '--markdown', action='store_true', help='write all tables into docs/model_zoo.md'
    )
    action.add_argument(
        '--check', action='store_true', help="exit with 1 unless ours are the paper's figures"
    )
    args = parser.parse_args()
    if unknown := set(args.folders) - set(FOLDERS):
        parser.error(f'no table is of {", ".join(sorted(unknown))}; there are {", ".join(FOLDERS)}')
    if args.markdown and args.folders:
        parser.error('--markdown writes all tables; leave out the folders')
    return args


@one_sentence_errors
def main():
    args = parse_args()
    warnings.simplefilter('ignore')  # of mmdet, mmseg and torch about each other
    folders = args.folders or FOLDERS
    if args.check:
        sys.exit(0 if check(folders) else 1)
    if args.markdown:
        around_markers(ZOO)  # before minutes of counting
        write_tables(ZOO, '\n'.join(tables(folders)))
    else:
        for text in tables(folders):
            print(text, flush=True)


if __name__ == '__main__':
    main()
