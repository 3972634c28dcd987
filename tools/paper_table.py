"""Compare parameters and FLOPs with the paper's Tables 1 to 13: python tools/paper_table.py"""

import argparse
import copy
import signal
import sys
import warnings
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, partial
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors
from mmfocalnet.errors import UserError
from mmfocalnet.files import replacing

DENSE = {
    'Table 5: Mask R-CNN on COCO': ['mask_rcnn'],
    'Table 6: other detectors on COCO': ['cascade_rcnn', 'sparse_rcnn', 'atss'],
    'Table 7: UperNet on ADE20K': ['upernet'],
    'Tables 8 and 9: Mask2Former on ADE20K and COCO': ['mask2former'],
}
FOLDERS = [folder for folders in DENSE.values() for folder in folders]
GROUPS = ['classification', *FOLDERS, 'ablations']
PAGES = {'docs/model_zoo.md': GROUPS[:-1], 'docs/ablations.md': GROUPS[-1:]}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('groups', nargs='*', help=f'choose from {", ".join(GROUPS)} (default: all)')
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        '--markdown', action='store_true', help=f'write all tables to {" and ".join(PAGES)}'
    )
    action.add_argument(
        '--check', action='store_true', help="exit with 1 unless the figures agree with the paper's"
    )
    args = parser.parse_args()
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f'unknown {", ".join(sorted(unknown))}: choose from {", ".join(GROUPS)}')
    if args.markdown and args.groups:
        parser.error('--markdown writes all tables: remove the groups')
    return args


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

import torch
import yaml
from mmcv.cnn import get_model_complexity_info
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from mmfocalnet.models import FocalNet
from mmfocalnet.models.complexity import classifier_flops, classifier_parameters

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = '<!-- paper_table: begin -->', '<!-- paper_table: end -->'
CLASSIFIERS = Path(__file__).with_name('paper_classifiers.yml')
PARAMETERS, FLOPS = 'Parameters (M)', 'FLOPs (G)'
SIZES = {
    'mmdet': (800, 1280),
    'mmseg': (512, 2048),
}  # height and width for which the paper counts FLOPs
BOX_ROIS, MASK_ROIS = 1000, 100  # as in the paper, at every stage of a cascade


# ------------------------------------------------------------------------------------------------
# Counting
# ------------------------------------------------------------------------------------------------


def build(cfg, device='meta'):
    # The DETR detectors of mmdet change their config.
    model = copy.deepcopy(cfg.model)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(model).eval()


def parameters(cfg):
    """Millions of parameters."""
    return sum(p.numel() for p in build(cfg).parameters()) / 1e6


def flops(cfg):
    """Billions of multiply-accumulates for one image, by the counter that the paper used.

    It counts layers. Products of two activations, as in attention, and interpolations are not
    counted.
    """
    # Meta tensors are fastest, but the forward pass of these models depends on values.
    by_value = any(kind in cfg.pretty_text for kind in ('Mask2FormerHead', 'PublishedDINO'))
    model = build(cfg, 'cpu' if by_value else 'meta')
    # As in training. Neither the counter nor the paper counts synchronised norms.
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    size = SIZES[cfg.default_scope]
    accept_images_alone(model, size)
    for module in model.modules():
        fix_rois(module)
    with torch.no_grad():
        count, _ = get_model_complexity_info(
            model, (3, *size), print_per_layer_stat=False, as_strings=False
        )
    return count / 1e9


FIGURES = {PARAMETERS: parameters, FLOPS: flops}


def accept_images_alone(model, size):
    """Bind the arguments of the model's forward pass other than the images."""
    from mmdet.models import Mask2FormerHead, SparseRCNN
    from mmdet.structures import DetDataSample

    shapes = dict(ori_shape=size, img_shape=size, batch_input_shape=size, scale_factor=(1, 1))
    samples = [DetDataSample(metainfo=shapes)]
    # Tensor mode of Sparse R-CNN needs annotations; prediction runs the same layers.
    mode = 'predict' if isinstance(model, SparseRCNN) else 'tensor'
    model.forward = partial(model.forward, data_samples=samples, mode=mode)
    head = getattr(model, 'decode_head', None)
    if isinstance(head, Mask2FormerHead):  # tensor mode of mmseg does not pass the samples to it
        head.forward = partial(head.forward, batch_data_samples=samples)


def fix_rois(module):
    """Replace operations that depend on the values of boxes by tensors of the right shape."""
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
        # Tensor mode of mmdet runs only the mask heads of a cascade on all boxes.
        module.register_forward_pre_hook(lambda module, args: (args[0][:MASK_ROIS],))
        module.register_forward_hook(
            lambda module, args, masks: masks.new_empty(BOX_ROIS, *masks.shape[1:])
        )


# ------------------------------------------------------------------------------------------------
# The networks of the paper, from the metafiles and paper_classifiers.yml
# ------------------------------------------------------------------------------------------------


@dataclass
class Network:
    """A network with its figures in the paper."""

    name: str
    paper: dict  # figures, and how the paper counted them
    metrics: dict  # name to values, one per schedule


@dataclass
class Dense(Network):
    """A detector or segmentor. All its schedules share its counts."""

    config: str  # of its first schedule

    def counted(self, figure, as_paper=True):
        """Count a figure of the config, by default with the settings that the paper counted."""
        cfg = Config.fromfile(ROOT / self.config)
        if as_paper:
            cfg.model.backbone.update(self.paper.get('Counted as', {}))
        return FIGURES[figure](cfg)

    def shipped(self, figure):
        """Count a figure of the config as it is."""
        return self.counted(figure, as_paper=False)

    def cells(self):
        """Cells of the table by column."""
        cells = {'config': f'`{self.name}`'}
        for figure in FIGURES:
            stated = figure in self.paper
            cells[f"{figure}, paper's"] = self.paper.get(figure, '-')
            cells[f'{figure}, counted'] = f'{self.counted(figure):.2f}' if stated else '-'
            cells[f'{figure}, shipped'] = f'{self.shipped(figure):.2f}'
        return cells


@dataclass
class Classifier(Network):
    """A classifier: a backbone with a final norm and a linear head of 1000 classes."""

    settings: dict  # of the backbone
    size: int  # height and width of the image

    def counted(self, figure):
        """Count a figure by the formula of the published code."""
        if figure == PARAMETERS:
            return classifier_parameters(self.net) / 1e6
        return classifier_flops(self.net, self.size) / 1e9

    @cached_property
    def net(self):
        """The backbone, on the meta device."""
        with torch.device('meta'):
            return FocalNet(**self.settings)

    def cells(self):
        """Cells of the table by column."""
        settings = ', '.join(f'{key}={value!r}' for key, value in self.settings.items())
        cells = {'network': self.name, 'backbone': f'`{settings}`'}
        for figure in FIGURES:
            cells[f"{figure}, paper's"] = self.paper.get(figure, '-')
            cells[f'{figure}, counted'] = f'{self.counted(figure):.3f}'
        return cells


def networks(group):
    """The networks of one group: a folder of configs, or the classifiers or ablations."""
    return [network for rows in by_title([group]).values() for network in rows]


def by_title(groups):
    """The networks of some groups by the title of their table. Folders may share a table."""
    found = {}
    for group in groups:
        if group in FOLDERS:
            title = next(title for title, folders in DENSE.items() if group in folders)
            found.setdefault(title, []).extend(from_metafile(group))
        else:
            listed = yaml.safe_load(CLASSIFIERS.read_text())[group]
            found |= {title: [as_classifier(row) for row in rows] for title, rows in listed.items()}
    return found


def from_metafile(folder):
    metafile = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())
    schedules = {}
    for model in metafile['Models']:
        if 'Paper' in model['Metadata']:
            schedules.setdefault(model['Name'].rsplit('_', 1)[0], []).append(model)
    return [as_dense(models) for models in schedules.values()]


def as_dense(models):
    config, paper = models[0]['Config'], models[0]['Metadata']['Paper']
    name, last = config.removeprefix('configs/').removesuffix('.py').rsplit('_', 1)
    if len(models) > 1:
        last = '{' + ','.join(model['Name'].rsplit('_', 1)[1] for model in models) + '}'
    metrics = {}
    for model in models:
        for result in model['Results']:
            for key, value in result['Metrics'].items():
                metrics.setdefault(key, []).append(value)
    return Dense(f'{name}_{last}', paper, metrics, config)


def as_classifier(row):
    metrics = {key: [value] for key, value in row['Metrics'].items()}
    return Classifier(row['Name'], row['Paper'], metrics, row['Settings'], row.get('Size', 224))


# ------------------------------------------------------------------------------------------------
# Tables
# ------------------------------------------------------------------------------------------------


def tables(groups):
    """Yield the lines of all tables in Markdown while counting."""
    for title, rows in by_title(groups).items():
        yield from ('', f'### {title}', '')
        yield from table(rows)


def table(rows):
    metrics = list(dict.fromkeys(key for network in rows for key in network.metrics))
    for i, network in enumerate(rows):
        cells = network.cells()
        if i == 0:
            columns = [*cells, *(f"{key}, paper's" for key in metrics)]
            yield line(columns)
            yield '|' + '---|' * len(columns)
        values = [' / '.join(map(str, network.metrics.get(key, ['-']))) for key in metrics]
        yield line([*cells.values(), *values])
    for network in rows:
        if 'Note' in network.paper:
            yield from ('', note(network))


def line(cells):
    return f'| {" | ".join(map(str, cells))} |'


def note(network):
    return f'`{network.name}`: {network.paper["Note"]}'


def around_markers(path):
    """The text of a file before and after the tables."""
    text = path.read_text() if path.is_file() else ''
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f'{path} must contain the lines {BEGIN} and {END} around the tables.')
    return before, after


def write_tables(path, text):
    """Replace the text between the markers of a file atomically."""
    before, after = around_markers(path)
    with replacing(path) as new:
        new.write_text(f'{before}{BEGIN}\n{text}\n\n{END}{after}')


# ------------------------------------------------------------------------------------------------
# Check
# ------------------------------------------------------------------------------------------------


def agrees(printed, value):
    """Whether a value rounds to the printed number."""
    unit = 10.0 ** Decimal(str(printed)).as_tuple().exponent
    return abs(value - printed) <= unit / 2


def check(groups):
    """Print each figure of the paper with ours; return whether all agree or are noted."""
    good = True
    for network in (network for group in groups for network in networks(group)):
        for figure in (figure for figure in FIGURES if figure in network.paper):
            printed, value = network.paper[figure], network.counted(figure)
            verdict = judge(agrees(printed, value), figure in network.paper.get('Differs', ()))
            good &= verdict in ('agrees', 'noted')
            print(
                f'{verdict}  {network.name}  {figure}: paper {printed}, counted {value:.3f}',
                flush=True,
            )
        if 'Note' in network.paper:
            print(f'        {note(network)}')
    return good


def judge(agreeing, noted):
    """Verdict on a figure. ``noted``: the figure is listed as differing, with a note."""
    if noted:
        return 'AGREES, though listed under Differs:' if agreeing else 'noted'
    return 'agrees' if agreeing else 'DIFFERS'


# ------------------------------------------------------------------------------------------------
# Command line
# ------------------------------------------------------------------------------------------------


@report_errors
def main():
    args = parse_args()
    warnings.simplefilter('ignore')  # of mmdet, mmseg and torch
    groups = args.groups or GROUPS
    if args.check:
        sys.exit(0 if check(groups) else 1)
    if args.markdown:
        for page in PAGES:
            around_markers(ROOT / page)  # fail before counting, which takes minutes
        for page, groups in PAGES.items():
            write_tables(ROOT / page, '\n'.join(tables(groups)))
    else:
        for text in tables(groups):
            print(text, flush=True)


if __name__ == '__main__':
    main()
