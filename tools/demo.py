"""Train a small FocalNet detector on generated images and show what it learned: make demo"""

import argparse
import subprocess
import sys
from pathlib import Path

from mmfocalnet.datasets import make_shapes
from mmfocalnet.launch import one_sentence_errors
from mmfocalnet.visualization import draw_curves, draw_sheet, read_scalars

TOOLS = Path(__file__).resolve().parent
METRICS = {'coco/bbox_mAP_50': 'box AP50', 'coco/segm_mAP_50': 'mask AP50'}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    return parser.parse_args()


def run(tool, *arguments):
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    print('$ python', Path(command[1]).relative_to(TOOLS.parent), *command[2:], flush=True)
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)


@one_sentence_errors
def main():
    work_dir = parse_args().work_dir
    config = TOOLS.parent / 'configs/demo/mask_rcnn.py'
    make_shapes('data/shapes')
    run('train.py', config, '--work-dir', work_dir)
    scalars = read_scalars(work_dir)
    draw_curves(scalars, METRICS, work_dir / 'curves.png')
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    detections = (work_dir / 'detections').resolve()
    run('test.py', config, checkpoint, '--work-dir', work_dir / 'test', '--show-dir', detections)
    draw_sheet(sorted(detections.glob('*.jpg'))[:8], work_dir / 'detections.png')

    reached = next(entry for entry in reversed(scalars) if next(iter(METRICS)) in entry)
    figures = ', '.join(f'{label} {100 * reached[key]:.1f}' for key, label in METRICS.items())
    print(f'\nReached on held-out images: {figures}.')
    print(f'Detections (left the truth, right the prediction): {work_dir}/detections.png')
    print(f'and one file per held-out image: {work_dir}/detections')
    print(f'Loss and AP over the iterations: {work_dir}/curves.png')


if __name__ == '__main__':
    main()
