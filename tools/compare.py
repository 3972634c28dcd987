"""Train and compare configs, several seeds each: tools/compare.py tools/comparison/bccd.yml"""

import argparse
import json
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

import yaml

from mmfocalnet.visualization import read_history


def read_table(path):
    try:
        table = yaml.safe_load(path.read_text())
        return dict(table['metrics']), {name: dict(row) for name, row in table['rows'].items()}
    except (AttributeError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f'{path} is not a table of configs ({error!r}): write it as tools/comparison/bccd.yml.'
        ) from None


def run(tool, *arguments):
    """Run a tool; return the peak of its resident memory in MB."""
    process = subprocess.Popen([sys.executable, TOOLS / tool, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(code)
    return usage.ru_maxrss / 1024


def train_and_test(row, seed, folder):
    """Measure a run, unless that was done before."""
    result = folder / 'result.json'
    if not result.exists():
        options = ['--cfg-options', f'randomness.seed={seed}', *row.get('options', [])]
        train = [row['config'], '--work-dir', folder, '--resume', *options]
        memory = run('train.py', *train)
        checkpoint = (folder / 'last_checkpoint').read_text()
        run('test.py', row['config'], checkpoint, '--work-dir', folder / 'test', *options)
        scores = json.loads(max((folder / 'test').glob('*/*.json')).read_text())
        time = median(entry['time'] for entry in read_history(folder).training)
        result.write_text(json.dumps(dict(scores, time=time, memory=memory)))
    return json.loads(result.read_text())


def spread(values):
    """Mean and standard deviation; COCO's metrics, which are shares, in percent."""
    values = [100 * value if max(values) <= 1 else value for value in values]
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def check_metrics(metrics, results):
    measured = set.intersection(*(set(run) for runs in results.values() for run in runs))
    if unknown := set(metrics) - measured:
        raise UserError(
            f'No test measured {", ".join(sorted(unknown))}: choose from '
            f'{", ".join(sorted(measured - {"time", "memory"}))}, and run the command again, which '
            'keeps the trained runs.'
        )


def print_table(metrics, results):
    print('|', ' | '.join(['', *metrics.values(), 's per iteration', 'memory (MB)']), '|')
    print('|---' * (len(metrics) + 3) + '|')
    for name, runs in results.items():
        scores = [spread([run[key] for run in runs]) for key in metrics]
        time, memory = (median(run[key] for run in runs) for key in ('time', 'memory'))
        print('|', ' | '.join([name, *scores, f'{time:.2f}', f'{memory:.0f}']), '|')


@report_errors
def main():
    args = parse_args()
    metrics, rows = read_table(args.table)
    work_dir = args.work_dir or Path('work_dirs/compare', args.table.stem)
    results = {name: [] for name in rows}
    for seed in range(args.seeds):
        for name, row in rows.items():  # alternating, as the speed of a machine changes
            folder = work_dir / name.replace(' ', '_') / f'seed{seed}'
            results[name].append(train_and_test(row, seed, folder))
    check_metrics(metrics, results)
    print_table(metrics, results)


if __name__ == '__main__':
    main()
