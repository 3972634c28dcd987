"""Train a small FocalNet model on generated images and draw its predictions: make demo"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors

BOXES = {'coco/bbox_mAP_50': 'box AP50'}
MASKS = {'coco/segm_mAP_50': 'mask AP50'}
METRICS = {
    'mask_rcnn': BOXES | MASKS,
    'cascade_rcnn': BOXES | MASKS,
    'atss': BOXES,
    'sparse_rcnn': BOXES,
    'dino': BOXES,
    'upernet': {'mIoU': 'mIoU'},
    'mask2former': {'coco_panoptic/PQ': 'PQ'} | MASKS,
    'mask2former_semantic': {'mIoU': 'mIoU'},
    'classification': {'accuracy/top1': 'top-1 accuracy'},
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', nargs='?', default='mask_rcnn', choices=METRICS)
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo or demo_MODEL')
    return parser.parse_args()


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.datasets import make_shape_crops, make_shapes
from mmfocalnet.visualization import draw_curves, draw_sheet, metrics, read_history

TOOLS = Path(__file__).resolve().parent


def run(tool, *arguments):
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    print('$ python', Path(command[1]).relative_to(TOOLS.parent), *command[2:], flush=True)
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)


@report_errors
def main():
    args = parse_args()
    name = 'demo' if args.model == 'mask_rcnn' else f'demo_{args.model}'
    work_dir = args.work_dir or Path('work_dirs') / name
    config = TOOLS.parent / f'configs/demo/{args.model}.py'
    if args.model == 'classification':
        make_shape_crops('data/shapes_crops')
    else:
        make_shapes('data/shapes')
    run('train.py', config, '--work-dir', work_dir)
    history = read_history(work_dir)
    draw_curves(history, METRICS[args.model], work_dir / 'curves.png')
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    prediction_dir = (work_dir / 'predictions').resolve()
    run(
        'test.py', config, checkpoint, '--work-dir', work_dir / 'test', '--show-dir', prediction_dir
    )
    images = sorted(prediction_dir.rglob('*.*g'))
    if args.model == 'classification':  # sorted by class, and square
        draw_sheet(images[:: -(-len(images) // 12)], work_dir / 'predictions.png', columns=4)
    else:
        draw_sheet(images[:8], work_dir / 'predictions.png')
    run('report.py', work_dir)

    final = {key: values[-1] for key, (_, values) in metrics(history.validation).items()}
    scores = ', '.join(f'{label} {final[key]:.1f}' for key, label in METRICS[args.model].items())
    caption = 'Ground truth (left) and predictions (right)'
    if args.model == 'classification':
        caption = 'Predictions (red: wrong)'
    print(f'\nReached on held-out images: {scores}.')
    print(f'{caption}: {work_dir}/predictions.png')
    print(f'One file per held-out image: {work_dir}/predictions')
    print(f'Training curves: {work_dir}/curves.png')
    print(f'Report, to open in a browser: {work_dir}/report.html')


if __name__ == '__main__':
    main()
