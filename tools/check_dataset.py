"""Check a dataset before training: python tools/check_dataset.py CONFIG"""

import argparse
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, print_lines, report_errors
from mmfocalnet.cli.flags import add_cfg_options
from mmfocalnet.errors import ConfigError, DataError
from mmfocalnet.files import check_folder, make_folder

SPLITS = ('train', 'val', 'test')


def parse_args():
    parser = argparse.ArgumentParser(
        description='Check images, label maps and annotations of the datasets of a config. Exit '
        'code 0: no errors (warnings are allowed); 1: errors that break training or evaluation.'
    )
    parser.add_argument('config', help='config file, such as configs/mask_rcnn/focalnet_t_1x.py')
    parser.add_argument(
        '--split',
        nargs='+',
        choices=SPLITS,
        help='splits to check (default: all in the config)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='DIR',
        help='folder for charts of the classes (default: work_dirs/check_dataset/CONFIG_NAME)',
    )
    add_cfg_options(parser)
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmengine.registry import DefaultScope

from mmfocalnet.compat.log_filters import import_datasets
from mmfocalnet.config import override, read_config
from mmfocalnet.datasets.category_names import check_num_classes
from mmfocalnet.datasets.data_checks import check_paths, split_datasets, split_evaluator
from mmfocalnet.datasets.inspection import find_evaluated_datasets, inspect_dataset
from mmfocalnet.datasets.inspection.chart import draw_counts
from mmfocalnet.datasets.inspection.findings import CLASSES


def find_inspections(cfg, splits):
    """Arguments of `inspect_dataset` by name; datasets that splits share occur once."""
    inspections = {}
    for split in splits or SPLITS:
        if not cfg.get(f'{split}_dataloader'):
            if splits:
                raise ConfigError(
                    f'{cfg.filename} has no {split}_dataloader: remove {split} from --split.'
                )
            continue
        check_paths(cfg, f'{split}_dataloader')
        check_paths(cfg, f'{split}_evaluator')
        evaluator = split_evaluator(cfg, split)
        found = split_datasets(cfg, split)
        names = [f'{split}_{n}' if len(found) > 1 else split for n, _ in enumerate(found, start=1)]
        arguments = [dict(dataset=dataset, evaluator=evaluator) for dataset in found]
        for number, dataset in enumerate(find_evaluated_datasets(found, evaluator), start=1):
            names.append(f'{split}_metric_{number}')
            arguments.append(dict(dataset=dataset, evaluator=evaluator, with_images=False))
        for name, new in zip(names, arguments, strict=True):
            if new not in inspections.values():
                inspections[name] = new
    return inspections


def check(name, arguments, cfg, out):
    """Inspect a dataset and print the findings; returns the number of errors."""
    print(f'{name}: reading files ...', flush=True)
    try:
        report = inspect_dataset(**arguments)
    except DataError as error:
        print_lines(f'ERROR: {error}', f'{name}: errors: 1, warnings: 0', '')
        return 1
    if arguments.get('with_images', True):  # a metric may evaluate a subset of the classes
        try:
            check_num_classes(arguments['dataset'], cfg.get('model') or {})
        except ConfigError as error:
            report.findings.add(CLASSES, str(error))
    print_lines(
        f'{name}: {report.title}, {report.images} images',
        *report.findings.lines(),
        *report.counts.lines(),
    )
    if report.counts.names:
        make_folder('--out', out)
        path = out / f'{name}.png'
        draw_counts(report.counts, f'{name}: {report.counts.unit} of each class', path)
        print_lines(f'Chart: {path}')
    errors = report.findings.total(errors=True)
    print(f'{name}: errors: {errors}, warnings: {report.findings.total(errors=False)}\n')
    return errors


@report_errors
def main():
    args = parse_args()
    cfg = read_config(args.config)
    override(cfg, args.cfg_options)
    import_datasets(cfg.get('default_scope'))
    out = args.out or Path('work_dirs/check_dataset', Path(args.config).stem)
    check_folder('--out', out)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        inspections = find_inspections(cfg, args.split)
        if not inspections:
            raise ConfigError(f'{args.config} has no datasets: add a _base_ that has them.')
        errors = sum(check(name, chosen, cfg, out) for name, chosen in inspections.items())
    sys.exit(1 if errors else 0)


if __name__ == '__main__':
    main()
