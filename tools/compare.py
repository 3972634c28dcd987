"""Train and compare configs, several seeds each: tools/compare.py tools/comparison/bccd.yml"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from statistics import mean, median, stdev

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback during the imports

from mmfocalnet.cli.error_handling import check_usage, report_errors
from mmfocalnet.errors import UserError
from mmfocalnet.files import replacing

TOOLS = Path(__file__).resolve().parent


def parse_args():
    parser = argparse.ArgumentParser(description='Train configs with several seeds, compare them')
    parser.add_argument('table', type=Path, metavar='TABLE.yml', help='the metrics and the configs')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='runs per config (3)')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/compare/TABLE')
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f'--seeds must be 1 or more, got {args.seeds}')
    return args


if __name__ == '__main__':
    check_usage(parse_args)  # before the slow imports

from mmfocalnet.cli.comparison_table import read_table
from mmfocalnet.visualization import read_history

PERCENT = 'coco/'  # COCO's metrics are shares, others are in percent.


def run_tool(name, *arguments):
    """Run a tool and return the peak of its resident memory in MB."""
    process = subprocess.Popen([sys.executable, TOOLS / name, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        raise UserError(
            f'{name} {arguments[0]} was killed by signal {-code} (9: often out of memory). Repeat '
            'the command to continue.'
        )
    if code:
        sys.exit(code)
    return usage.ru_maxrss / 1024


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text)


def check_unchanged(config, text):
    """Check that an earlier run with this config file had the same config."""
    if config.with_suffix('').exists() and config.exists() and config.read_text() != text:
        raise UserError(
            f'The config of this row was changed after the run {config.with_suffix("")}: remove '
            f'that folder and {config}, or choose another --work-dir.'
        )


def train_and_test(config, text):
    """Train and test one run, or return its results if that was done before."""
    folder = config.with_suffix('')
    trained, tested = folder / 'trained.json', folder / 'tested.json'
    write(config, text)
    if not trained.exists():
        memory = run_tool('train.py', config, '--work-dir', folder, '--resume')
        times = [entry['time'] for entry in read_history(folder).training]
        time = median(times or [math.nan])  # shorter than the interval of the log
        write(trained, json.dumps(dict(time=time, memory=memory)))
    if not tested.exists():
        checkpoint = (folder / 'last_checkpoint').read_text()
        run_tool('test.py', config, checkpoint, '--work-dir', folder / 'test')
        write(tested, max((folder / 'test').glob('*/*.json')).read_text())
    return {**json.loads(tested.read_text()), **json.loads(trained.read_text())}


def check_metrics(metrics, result):
    measured = set(result) - {'data_time', 'memory', 'time'}
    if unknown := set(metrics) - measured:
        raise UserError(
            f'No test measured {", ".join(sorted(unknown))}: choose from '
            f'{", ".join(sorted(measured))}, and repeat the command. The trained runs are kept.'
        )


def spread(key, results):
    """Mean and standard deviation of a metric in percent."""
    values = [result[key] * (100 if key.startswith(PERCENT) else 1) for result in results]
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def print_table(metrics, results):
    print('|', ' | '.join(['', *metrics.values(), 's per iteration', 'memory (MB)']), '|')
    print('|---' * (len(metrics) + 3) + '|')
    for name, row in results.items():
        scores = [spread(key, row) for key in metrics]
        time, memory = (median(result[key] for result in row) for key in ('time', 'memory'))
        print('|', ' | '.join([name, *scores, f'{time:.2f}', f'{memory:.0f}']), '|')


@report_errors
def main():
    args = parse_args()
    metrics, rows = read_table(args.table)
    work_dir = args.work_dir or Path('work_dirs/compare', args.table.stem)
    runs = {}
    for seed in range(args.seeds):
        for name, cfg in rows.items():
            cfg.merge_from_dict(dict(randomness=dict(seed=seed)))
            runs[name, seed] = work_dir / name / f'seed{seed}.py', cfg.pretty_text
            check_unchanged(*runs[name, seed])
    results = {name: [] for name in rows}
    for (name, _), run in runs.items():  # rows alternate, as the speed of a machine changes
        results[name].append(train_and_test(*run))
        check_metrics(metrics, results[name][-1])
    print_table(metrics, results)


if __name__ == '__main__':
    main()
