"""One HTML file with the curves, predictions, config and environment of a training run."""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment
from markupsafe import Markup
from mmengine.config import Config

from mmfocalnet.config import read_config
from mmfocalnet.errors import ConfigError, UserError
from mmfocalnet.files import replacing
from mmfocalnet.visualization.curves import draw_panel
from mmfocalnet.visualization.gallery import Gallery, make_gallery
from mmfocalnet.visualization.training_log import (
    Curve,
    History,
    key_curve,
    loss_terms,
    metrics,
    read_history,
)

_SHOWN_FIRST = 4
# Metrics in percent: those of mmdet and mmseg, and those of COCO as `metrics` returns them.
_PERCENT = re.compile(r'coco|[am](Acc|IoU|Dice|Fscore|Precision|Recall)$')


class Missing(NamedTuple):
    """Messages about what a report does not contain.

    Attributes:
        yet: What is not available yet, as in an unfinished run.
        skipped: What is available but cannot be used, such as a damaged image.
    """

    yet: list[str]
    skipped: list[str]


def write_report(work_dir: Path, out: Path, images: int = 16) -> Missing:
    """Write the report of a training run, finished or not.

    Args:
        work_dir: Folder that MMEngine's Runner wrote; the runs in it are joined.
        out: HTML file to write, which needs no other file.
        images: Number of held-out images to predict with the newest checkpoint on the CPU; 0 for
            none. Defaults to 16.

    Returns:
        What is missing in the report; the report contains the same messages.

    Raises:
        UserError: If `work_dir` contains no run, or `out` cannot be written.
    """
    history = read_history(work_dir)
    run = history.runs[-1]
    environment = _read_environment(run)
    config_path, config_text, cfg = _read_run_config(work_dir, run)
    notes = _notes(history, environment, cfg)
    gallery = make_gallery(work_dir, cfg, images) if images else Gallery()
    template = Path(__file__).with_name('report.html').read_text('utf-8')
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    html = page.render(
        name=Path(work_dir).resolve().name,
        facts=_facts(history, environment, cfg),
        notes=notes,
        results=_results(history),
        panels=_panels(history, _images_per_iteration(environment, cfg)),
        gallery=gallery,
        first=min(_SHOWN_FIRST, len(gallery.images) // 2 or 1),
        config_path=config_path,
        config_text=config_text,
        environment=environment,
        run=run.name,
    )
    try:
        with replacing(out) as part:
            part.write_text(html, encoding='utf-8')
    except OSError as error:
        raise UserError(
            f'{out} cannot be written ({error.strerror}): specify another file as --out.'
        ) from error
    return Missing(notes + gallery.missing, gallery.skipped)


def _read_environment(run: Path) -> str:
    """The block of a run's log about the machine that trained, or an empty string."""
    log = run / f'{run.name}.log'
    text = log.read_text(errors='replace') if log.is_file() else ''
    found = re.search(r'^System environment:\n(.*?)^-{20,}$', text, re.DOTALL | re.MULTILINE)
    return found[1].rstrip() if found else ''


def _setting(environment: str, name: str) -> str | None:
    found = re.search(rf'^\s*{name}: (.*)$', environment, re.MULTILINE)
    return found[1].strip() if found else None


def _read_run_config(work_dir: Path, run: Path) -> tuple[str, str, Config | None]:
    """Path, text and content of a run's config; empty and None if there is no valid one."""
    # The run's own copy first: a later test in the same folder replaces the one in the work dir.
    dumped = sorted(Path(work_dir).glob('*.py'), key=os.path.getmtime, reverse=True)
    invalid = '', '', None
    for path in filter(Path.is_file, (run / 'vis_data/config.py', *dumped)):
        text = path.read_text(errors='replace')
        try:
            return str(path), text, read_config(str(path))
        except ConfigError:  # for example, incomplete
            invalid = str(path), text, None
    return invalid


def _images_per_iteration(environment: str, cfg: Config | None) -> int | None:
    batch_size = (cfg or {}).get('train_dataloader', {}).get('batch_size')
    processes = _setting(environment, 'GPU number')  # MMEngine's name for it on the CPU, too
    return batch_size * int(processes) if batch_size and processes else None


def _notes(history: History, environment: str, cfg: Config | None) -> list[str]:
    """Messages about what is missing or broken."""
    notes = []
    if not history.training:
        notes.append('Nothing has been logged yet: MMEngine logs every few iterations.')
    elif not history.validation:
        notes.append('No metrics: there has been no validation yet.')
    if history.damaged:
        notes.append(
            f'{history.damaged} unreadable line(s) of scalars.json are left out. A run that was '
            'stopped while writing leaves one.'
        )
    if history.replaced:
        notes.append(
            f'Left out, because {history.runs[0].name} started from scratch: '
            f'{", ".join(history.replaced)}.'
        )
    steps, losses = key_curve(history.training, 'loss')
    broken = [step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)]
    if broken:
        notes.append(f'The loss is NaN or infinite from iteration {broken[0]}.')
    if not environment:
        notes.append(f'No environment: {history.runs[-1].name} has no log that contains it.')
    if cfg is None:
        notes.append('No config: none could be read.')
    return notes


def _facts(history: History, environment: str, cfg: Config | None) -> dict[str, str]:
    """The first table of the report."""
    facts = {'Model': _model(cfg)} if cfg else {}
    facts['Progress'] = _progress(history, cfg)
    facts['Started'] = ', resumed '.join(run.name for run in history.runs)
    if history.resumed:
        points = [
            (f'epoch {past.epoch}, ' if history.by_epoch else '') + f'iteration {past.iteration}'
            for past in history.resumed
        ]
        facts['Resumed'] = f'after {"; ".join(points)} (dashed in the curves)'
    _, times = key_curve(history.training, 'time')
    _, waits = key_curve(history.training, 'data_time')
    if sum(times):
        facts['Time'] = (
            f'{statistics.median(times):.3g} s per iteration (median), '
            f'{sum(waits) / sum(times):.1%} of it waiting for data'
        )
    device = _setting(environment, r'GPU [\d,]+') or ('CPU' if environment else '')
    _, memory = key_curve(history.training, 'memory')
    if memory:
        facts['Memory'] = f'at most {max(memory):,.0f} MiB on a GPU'
    elif history.training:
        facts['Memory'] = 'not logged on the CPU' if device == 'CPU' else 'not logged'
    if environment:
        facts['Trained on'] = (
            f'{device}, processes: {_setting(environment, "GPU number")}, PyTorch '
            f'{_setting(environment, "PyTorch")}, MMEngine {_setting(environment, "MMEngine")}, '
            f'seed {_setting(environment, "seed")}'
        )
    return facts


def _model(cfg: Config) -> str:
    model = cfg.get('model', {})
    backbone = model.get('backbone', {})
    arch = backbone.get('arch')
    if not isinstance(arch, str):
        width = (arch or backbone).get('embed_dim')
        arch = f'with embed_dim={width}' if width else ''
    return f'{model.get("type")} on {backbone.get("type")} {arch}'.rstrip()


def _progress(history: History, cfg: Config | None) -> str:
    last = history.training[-1] if history.training else {'step': 0}
    loop = (cfg or {}).get('train_cfg') or {}
    unit = 'epoch' if loop.get('max_epochs') else 'iteration'
    done = last.get('epoch', 0) if unit == 'epoch' else last['step']
    total = loop.get('max_epochs' if unit == 'epoch' else 'max_iters')
    return f'logged up to {unit} {done}' + (f' of {total}' if total else '')


def _results(history: History) -> list[tuple[str, float, float, str]]:
    """Name, last and best value of each metric, and when it was best."""
    unit = 'epoch' if history.by_epoch else 'iteration'
    rows = []
    for key, (steps, values) in metrics(history.validation).items():
        best = max(range(len(values)), key=lambda i, v=values: (math.isfinite(v[i]), v[i], -i))
        rows.append((key, values[-1], values[best], f'{unit} {steps[best]}'))
    return rows


def _panels(history: History, images_per_iteration: int | None) -> list[Markup]:
    """The curves of a history as SVG elements."""
    training = history.training
    resumed = [past.iteration for past in history.resumed]
    panels: list[tuple[dict[str, Curve], str]] = [
        ({'loss': key_curve(training, 'loss')}, 'Training loss'),
        (loss_terms(training), 'Terms of the loss'),
        (_learning_rates(training), 'Learning rate'),
        _speed(training, images_per_iteration),
        ({'memory': key_curve(training, 'memory')}, 'GPU memory (MiB)'),
    ]
    drawn = [
        draw_panel(curves, title, 'Iteration', resumed)
        for curves, title in panels
        if any(steps for steps, _ in curves.values())
    ]
    if history.by_epoch:
        resumed = [past.epoch for past in history.resumed]
    x_label = 'Epoch' if history.by_epoch else 'Iteration'
    drawn += [
        # A single curve has no legend.
        draw_panel(curves, title + f': {min(curves)}' * (len(curves) == 1), x_label, resumed)
        for title, curves in _metric_groups(metrics(history.validation)).items()
    ]
    return [Markup(svg) for svg in drawn]  # matplotlib escapes text


def _learning_rates(training: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    curves = {key: key_curve(training, key) for key in ('lr', 'base_lr')}
    # They differ if parameter groups have separate learning rates.
    return {'lr': curves['lr']} if curves['lr'] == curves['base_lr'] else curves


def _speed(
    training: Sequence[Mapping[str, float]], images: int | None
) -> tuple[dict[str, Curve], str]:
    steps, times = key_curve([e for e in training if e.get('time')], 'time')
    unit = 'images' if images else 'iterations'
    speeds = [(images or 1) / time for time in times]
    return {'speed': (steps, speeds)}, f'Training speed ({unit} per second)'


def _metric_groups(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Group metrics that belong on one panel, such as those of boxes, by its title."""
    groups: dict[str, dict[str, Curve]] = {}
    for key, curve in curves.items():
        dataset, _, name = key.rpartition('/')
        kind, _, rest = name.partition('_')
        if dataset and rest and kind in ('bbox', 'segm', 'proposal'):
            dataset, name = f'{dataset}/{kind}', rest
        percent = ' (%)' if _PERCENT.match(key) else ''
        groups.setdefault(f'Validation {dataset}'.rstrip() + percent, {})[name] = curve
    return groups
