"""Run checks, print a line for each, and write the results."""

import gc
import json
import math
import sys
import time
import traceback
import zlib

import torch
from prettytable import PrettyTable, TableStyle

from mmfocalnet.cli.error_handling import print_lines
from mmfocalnet.files import replacing

# Seconds after which no check starts.
BUDGETS = dict(quick=120, full=360)
STATUSES = ('passed', 'failed', 'skipped')
NO_TIME = 'no time'
LEGEND = """\
Errors are ||a - b|| / ||b|| of an output or gradient against float64 on the CPU. Limits of
operators: 1e-5 in float32 (1e-4 for gradients of weights), 8 eps in bfloat16 (0.063) and float16
(0.0078). Cases of modulations: (shape (B, H, W, C), focal levels, focal window).

Times are medians. "% of products": the FLOPs of matrix products and convolutions at the measured
rate of the precision, divided by the time. "% of copies": the bytes of inputs and outputs at the
measured rate of a copy. "/ published": divided by the row "published layout". Memory: peak of a
training step.
"""


class Skipped(Exception):  # noqa: N818
    """A check cannot run here."""


class Wrong(Exception):  # noqa: N818
    """A check found a wrong result."""


class Report:
    """Results of all checks; ``args`` has the flags of tools/check_gpu.py."""

    def __init__(self, args):
        self.device, self.full, self.out = args.device, not args.quick, args.out
        self.on_gpu = self.device == 'cuda'
        self.environment, self.rates, self.checks, self.tables = {}, {}, [], {}
        self.command, self.complete = ' '.join(sys.argv), False
        self.budget = BUDGETS['full' if self.full else 'quick']
        self.started = time.monotonic()

    def run_section(self, name, share, run):
        """Run the checks of a section that start before a share of the budget is spent."""
        print(f'\n{name}', flush=True)
        self.section, self.deadline = name, self.started + share * self.budget
        try:
            run(self)
        except Exception as error:
            self._add(name, 0.0, **failure(error))
        self.write()

    def check(self, name, function, *args):
        """Run a check, which returns numbers by name, the most important first."""
        start = time.monotonic()
        if start > self.deadline:
            self._add(name, 0.0, 'skipped', note=NO_TIME)
            return
        try:
            torch.manual_seed(zlib.crc32(name.encode()))
            found = dict(status='passed', numbers=function(*args))
            if self.on_gpu:
                torch.cuda.synchronize()  # raises errors of kernels
        except Skipped as reason:
            found = dict(status='skipped', note=str(reason))
        except Exception as error:
            found = failure(error)
        self._add(name, time.monotonic() - start, **found)
        if self.on_gpu and torch.cuda.memory_allocated() > 2**30:
            gc.collect()

    def _add(self, name, seconds, status, numbers=None, note='', error=None):
        entry = dict(section=self.section, name=name, status=status, numbers=numbers or {})
        self.checks.append(entry | dict(note=note, seconds=round(seconds, 2), traceback=error))
        result = note or shown(list(entry['numbers'].items())[:2])
        print_lines(f'  {status:7} {name}{": " if result else ""}{result} ({seconds:.1f} s)')

    def count(self, status, section=None):
        """Number of checks with a status, of one section or in total."""
        sections = [check['section'] for check in self.checks if check['status'] == status]
        return sections.count(section) if section else len(sections)

    def is_good(self):
        """Whether no check failed, and all but those of the speed have run."""
        return not self.count('failed') and not self.unchecked()

    def unchecked(self):
        """Checks for which no time was left, apart from those of the speed."""
        late = [check for check in self.checks if check['note'] == NO_TIME]
        return [check for check in late if check['section'] != 'speed']

    def verdict(self):
        """The result in lines, the most important first."""
        counts = ', '.join(f'{self.count(status)} {status}' for status in STATUSES)
        taken = time.monotonic() - self.started
        state = '' if self.complete else 'Unfinished: '
        lines = [f'{state}{counts} in {taken:.0f} s: {self.command}']
        for check in self.checks:
            if check['status'] == 'failed':
                lines.append(f'failed: {check["section"]}: {check["name"]}: {check["note"]}')
        if late := self.unchecked():
            lines.append(f'Incomplete: no time was left for {len(late)} checks besides the speed.')
        return lines

    def write(self):
        """Write gpu.json and gpu.md."""
        content = dict(complete=self.complete, command=self.command, environment=self.environment)
        content = without_nan(content | dict(checks=self.checks))
        with replacing(self.out / 'gpu.json') as part:
            part.write_text(json.dumps(content, indent=1, default=str))
        columns = ('section', 'name', 'status', 'result', 'seconds')
        rows = [c | dict(result=c['note'] or shown(c['numbers'].items())) for c in self.checks]
        parts = {
            'FocalNet on this machine': '\n'.join(f'- {line}' for line in self.verdict()),
            'Environment': markdown(['', 'value'], self.environment.items()),
            **self.tables,
            'Checks': markdown(columns, [[row[column] for column in columns] for row in rows]),
            'Explanation': LEGEND,
        }
        with replacing(self.out / 'gpu.md') as part:
            part.write_text('\n'.join(f'## {title}\n\n{text}\n' for title, text in parts.items()))

    def finish(self):
        """Write the complete results, and print tables, numbers of checks and the verdict."""
        self.complete = True
        self.write()
        for title, table in self.tables.items():
            print(f'\n{title}\n\n{table}')
        sections = dict.fromkeys(check['section'] for check in self.checks)
        counts = [[s, *(self.count(status, s) for status in STATUSES)] for s in sections]
        print(f'\n{markdown(["section", *STATUSES], counts)}\n')
        print_lines(*self.verdict(), f'Results: {self.out}/gpu.md and gpu.json')


def failure(error):
    """Status, last line and traceback of an exception."""
    last = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
    note = str(error) if isinstance(error, Wrong) else last
    return dict(status='failed', note=note, error=''.join(traceback.format_exception(error)))


def relative_error(actual, expected):
    """||actual - expected|| / ||expected||; NaN if one of them has a NaN."""
    actual, expected = (tensor.detach().cpu().double() for tensor in (actual, expected))
    if actual.shape != expected.shape:
        raise Wrong(f'shape {tuple(actual.shape)} instead of {tuple(expected.shape)}')
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-300))


def largest_error(actual, expected, limit):
    """The largest relative error of tensors with the same names.

    Args:
        actual: Tensors by name.
        expected: Those that they should equal.
        limit: A number, or a function of the name.

    Raises:
        Wrong: If an error is NaN or not below its limit.
    """
    largest = 0.0
    for name, tensor in expected.items():
        error = relative_error(actual[name], tensor)
        allowed = limit(name) if callable(limit) else limit
        if not error < allowed:
            raise Wrong(f'{name}: relative error {error:.2g}, limit {allowed:.2g}')
        largest = max(largest, error)
    return largest


def markdown(columns, rows):
    """A table as Markdown."""
    table = PrettyTable([*columns])
    table.add_rows([[str(c).replace('|', '/').replace('\n', ' ') for c in row] for row in rows])
    table.set_style(TableStyle.MARKDOWN)
    table.align = 'l'
    return str(table)


def shown(items):
    texts = ((key, f'{v:.3g}' if isinstance(v, float) else v) for key, v in items)
    return ', '.join(f'{key} {text}' for key, text in texts)


def without_nan(value):
    """Replace NaN and infinity, which JSON does not have, by strings."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
