"""A training at a glance: one HTML file with its curves, predictions, config and environment."""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup
from mmengine.config import Config

from mmfocalnet.config import read_config
from mmfocalnet.errors import ConfigError, UserError
from mmfocalnet.files import replacing
from mmfocalnet.visualization.curves import (
    Curve,
    History,
    draw_panel,
    key_curve,
    loss_terms,
    metrics,
    read_history,
)
from mmfocalnet.visualization.gallery import Gallery, make_gallery

_SHOWN_FIRST = 4
# What mmdet and mmseg measure in percent, COCO's after `metrics`.
_PERCENT = re.compile(r'coco|[am](Acc|IoU|Dice|Fscore|Precision|Recall)$')


class Missing(NamedTuple):
    """What a report does not show, a sentence each.

    Attributes:
        yet: What is not there, as in a run that is not finished.
        skipped: What is there and cannot be used, such as a damaged image.
    """

    yet: list[str]
    skipped: list[str]


def write_report(work_dir: Path, out: Path, images: int = 16) -> Missing:
    """Write the report of a training, finished or not.

    Args:
        work_dir: Folder that MMEngine's Runner wrote; several runs in it are joined.
        out: HTML file to write, which needs no other file.
        images: Number of held-out images to predict with the newest checkpoint, on the CPU;
            0 for none. Defaults to 16.

    Returns:
        What is missing in the report, which says so too.

    Raises:
        UserError: If no run was started in `work_dir`, or `out` cannot be written.
    """
    history = read_history(work_dir)
    run = history.runs[-1]
    environment = _environment(run)
    config_path, config_text, cfg = _config(work_dir, run)
    notes = _notes(history, environment, cfg)
    gallery = make_gallery(work_dir, cfg, images) if images else Gallery()
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    html = page.render(
        name=Path(work_dir).resolve().name,
        facts=_facts(history, environment, cfg),
        notes=notes,
        results=_results(history),
        panels=_panels(history, _images_per_iteration(environment, cfg)),
        gallery=gallery,
        first=min(_SHOWN_FIRST, len(gallery.pictures) // 2 or 1),
        config_path=config_path,
        config_text=config_text,
        environment=environment,
        run=run.name,
    )
    _write(out, html)
    return Missing(notes + gallery.missing, gallery.skipped)


def _write(out: Path, text: str) -> None:
    if os.path.isdir(out):
        raise UserError(f'{out} is a folder: give a file as --out, such as {out / "report.html"}.')
    try:
        with replacing(out) as part:
            part.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(
            f'{out} cannot be written ({error.strerror}): give another file as --out.'
        ) from error


# What the run's own files say.


def _environment(run: Path) -> str:
    """The block of a run's log on the machine that trained, or nothing."""
    log = run / f'{run.name}.log'
    text = log.read_text(errors='replace') if log.is_file() else ''
    found = re.search(r'^System environment:\n(.*?)^-{20,}$', text, re.DOTALL | re.MULTILINE)
    return found[1].rstrip() if found else ''


def _setting(environment: str, name: str) -> str | None:
    found = re.search(rf'^\s*{name}: (.*)$', environment, re.MULTILINE)
    return found[1].strip() if found else None


def _config(work_dir: Path, run: Path) -> tuple[str, str, Config | None]:
    """Path, text and content of a run's config."""
    # Beside its scalars first: a test into the same folder overwrites the one in the work dir.
    dumped = sorted(Path(work_dir).glob('*.py'), key=os.path.getmtime, reverse=True)
    unreadable = '', '', None
    for path in filter(Path.is_file, (run / 'vis_data/config.py', *dumped)):
        text = path.read_text(errors='replace')
        try:
            return str(path), text, read_config(str(path))
        except ConfigError:  # as one that was cut short
            unreadable = str(path), text, None
    return unreadable


def _images_per_iteration(environment: str, cfg: Config | None) -> int | None:
    batch_size = (cfg or {}).get('train_dataloader', {}).get('batch_size')
    processes = _setting(environment, 'GPU number')  # MMEngine's name for it on the CPU, too
    return batch_size * int(processes) if batch_size and processes else None


def _notes(history: History, environment: str, cfg: Config | None) -> list[str]:
    """What a reader should know before believing the curves."""
    notes = []
    if not history.training:
        notes.append('Nothing has been logged yet: MMEngine logs every few iterations.')
    elif not history.validation:
        notes.append('There has been no validation yet, so that there are no metrics.')
    if history.damaged:
        notes.append(
            f'{history.damaged} line(s) of scalars.json could not be read and are left out; '
            'a run that was stopped while writing leaves one.'
        )
    if history.replaced:
        notes.append(
            f'Left out, because {history.runs[0].name} started afresh: '
            f'{", ".join(history.replaced)}.'
        )
    steps, losses = key_curve(history.training, 'loss')
    broken = [step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)]
    if broken:
        notes.append(f'The loss is NaN or infinite from iteration {broken[0]} on.')
    if not environment:
        notes.append(f'{history.runs[-1].name} has no log that names its environment.')
    if cfg is None:
        notes.append('There is no config that could be read, so that its facts are missing.')
    return notes


def _facts(history: History, environment: str, cfg: Config | None) -> dict[str, str]:
    """The first lines of the report."""
    facts = {'Model': _model(cfg)} if cfg else {}
    facts['Progress'] = _progress(history, cfg)
    facts['Started'] = ', resumed '.join(run.name for run in history.runs)
    if history.resumed:
        points = [
            (f'epoch {past.epoch}, ' if history.by_epoch else '') + f'iteration {past.iteration}'
            for past in history.resumed
        ]
        facts['Resumed'] = f'after {"; ".join(points)} (dashed in the curves)'
    device = _setting(environment, r'GPU [\d,]+') or ('CPU' if environment else '')
    facts |= _cost(history, device)
    if environment:
        facts['Trained on'] = (
            f'{device}, processes: {_setting(environment, "GPU number")}, PyTorch '
            f'{_setting(environment, "PyTorch")}, MMEngine {_setting(environment, "MMEngine")}, '
            f'seed {_setting(environment, "seed")}'
        )
    return facts


def _cost(history: History, device: str) -> dict[str, str]:
    """Time and memory of training."""
    costs = {}
    _, times = key_curve(history.training, 'time')
    _, waits = key_curve(history.training, 'data_time')
    if sum(times):
        costs['Time'] = (
            f'{statistics.median(times):.3g} s per iteration (median), '
            f'{sum(waits) / sum(times):.1%} of it waiting for data'
        )
    _, memory = key_curve(history.training, 'memory')
    if memory:
        costs['Memory'] = f'at most {max(memory):,.0f} MiB on a GPU'
    elif history.training:
        costs['Memory'] = 'not logged on the CPU' if device == 'CPU' else 'not logged'
    return costs


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
    total = loop.get(f'max_{unit}s' if unit == 'epoch' else 'max_iters')
    return f'logged up to {unit} {done}' + (f' of {total}' if total else '')


def _results(history: History) -> list[dict[str, Any]]:
    """Last and best value of each metric."""
    unit = 'epoch' if history.by_epoch else 'iteration'
    rows = []
    for key, (steps, values) in metrics(history.validation).items():
        best = max(range(len(values)), key=lambda i, v=values: (math.isfinite(v[i]), v[i], -i))
        rows.append(
            {
                'metric': key,
                'last': f'{values[-1]:.1f}',
                'best': f'{values[best]:.1f}',
                'at': f'{unit} {steps[best]}',
            }
        )
    return rows


# Curves.


def _panels(history: History, images_per_iteration: int | None) -> list[Markup]:
    """The curves of a history, each an SVG element."""
    training = history.training
    marks = [past.iteration for past in history.resumed]
    panels: list[tuple[dict[str, Curve], str]] = [
        ({'loss': key_curve(training, 'loss')}, 'Training loss'),
        (loss_terms(training), 'Terms of the loss'),
        (_rates(training), 'Learning rate'),
        *_speed(training, images_per_iteration),
        ({'memory': key_curve(training, 'memory')}, 'GPU memory (MiB)'),
    ]
    drawn = [
        draw_panel(curves, title, 'Iteration', marks)
        for curves, title in panels
        if any(steps for steps, _ in curves.values())
    ]
    if history.by_epoch:
        marks = [past.epoch for past in history.resumed]
    x_label = 'Epoch' if history.by_epoch else 'Iteration'
    drawn += [
        # One curve has no legend.
        draw_panel(curves, title + f': {min(curves)}' * (len(curves) == 1), x_label, marks)
        for title, curves in _metric_groups(metrics(history.validation)).items()
    ]
    return [Markup(svg) for svg in drawn]  # matplotlib escapes what it draws


def _rates(training: Sequence[Mapping[str, float]]) -> dict[str, Curve]:
    curves = {key: key_curve(training, key) for key in ('lr', 'base_lr')}
    # They differ where parameter groups have rates of their own.
    return {'lr': curves['lr']} if curves['lr'] == curves['base_lr'] else curves


def _speed(
    training: Sequence[Mapping[str, float]], images: int | None
) -> list[tuple[dict[str, Curve], str]]:
    steps, times = key_curve([e for e in training if e.get('time')], 'time')
    unit = 'images' if images else 'iterations'
    speeds = [(images or 1) / time for time in times]
    return [({'speed': (steps, speeds)}, f'Training speed ({unit} per second)')]


def _metric_groups(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Metrics that belong on one panel, such as those of boxes, under its title."""
    groups: dict[str, dict[str, Curve]] = {}
    for key, curve in curves.items():
        dataset, _, name = key.rpartition('/')
        kind, _, rest = name.partition('_')
        if dataset and rest and kind in ('bbox', 'segm', 'proposal'):
            dataset, name = f'{dataset}/{kind}', rest
        percent = ' (%)' if _PERCENT.match(key) else ''
        groups.setdefault(f'Validation {dataset}'.rstrip() + percent, {})[name] = curve
    return groups


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Training: {{ name }}</title>
<style>
:root { color-scheme: light dark; --line: #d5d8dc; --soft: #f4f5f7; --page: #fff; --text: #1b1f24; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a3f46; --soft: #22262b; --page: #15181c; --text: #e4e7ea; }
}
body { background: var(--page); color: var(--text); font: 16px/1.45 system-ui, sans-serif;
  margin: 0 auto; max-width: 1180px; padding: 1rem 1.5rem 3rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; } h3 { margin: 1.2rem 0 .4rem; }
table { align-self: start; border-collapse: collapse; justify-self: start; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem 1.2rem .2rem 0; text-align: left;
  vertical-align: top; }
th { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.note { background: var(--soft); border-left: 4px solid #c77700; margin: .4rem 0;
  padding: .4rem .8rem; }
.two { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); }
.two svg { height: auto; width: 100%; }
figure { margin: 0; } figure img { display: block; width: 100%; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
pre { background: var(--soft); font-size: .8rem; overflow-x: auto; padding: .8rem; }
summary { cursor: pointer; }
.class { margin-right: 1rem; white-space: nowrap; }
.class i { border-radius: 2px; display: inline-block; height: .8em; margin-right: .35em;
  width: .8em; }
</style>
</head>
<body>
<h1>Training: {{ name }}</h1>
<div class="two">
<table>
{% for name, fact in facts.items() %}
<tr><th>{{ name }}</th><td>{{ fact }}</td></tr>
{% endfor %}
</table>
{% if results %}
<table>
<tr><th>Validation</th><th class="number">last</th><th class="number">best</th><th>at</th></tr>
{% for row in results %}
<tr><td>{{ row.metric }}</td><td class="number">{{ row.last }}</td>
<td class="number">{{ row.best }}</td><td>{{ row.at }}</td></tr>
{% endfor %}
</table>
{% endif %}
</div>
{% for note in notes %}
<p class="note">{{ note }}</p>
{% endfor %}
{% if panels %}
<h2>Curves</h2>
<div class="two">
{% for panel in panels %}
<figure>{{ panel }}</figure>
{% endfor %}
</div>
{% endif %}
{% macro pictures(chosen) %}
<div class="two">
{% for picture in chosen %}
<figure><img src="{{ picture.url }}" alt="truth and prediction">
<figcaption>{{ '%.2f' % picture.score }} &middot; {{ picture.name }}</figcaption></figure>
{% endfor %}
</div>
{% endmacro %}
{% if gallery.pictures or gallery.missing or gallery.skipped %}
<h2>Predictions</h2>
{% endif %}
{% for reason in gallery.missing + gallery.skipped %}
<p class="note">{{ reason }}</p>
{% endfor %}
{% if gallery.pictures %}
{% set rest = gallery.pictures[first:] %}
<p>{{ gallery.caption }}</p>
<p>{% for name, colour in gallery.classes.items() %}
<span class="class"><i style="background: {{ colour }}"></i>{{ name }}</span>
{% endfor %}</p>
<h3>Best</h3>
{{ pictures(gallery.pictures[:first]) }}
{% if rest %}
<h3>Worst</h3>
{{ pictures(rest[-first:] | reverse) }}
{% endif %}
{% if rest[:-first] %}
<details><summary><b>The {{ rest[:-first] | length }} between</b></summary>
{{ pictures(rest[:-first]) }}
</details>
{% endif %}
{% endif %}
<h2>Config and environment</h2>
{% if config_text %}
<details><summary>Config, {{ config_path }}</summary>
<pre>{{ config_text }}</pre>
</details>
{% endif %}
{% if environment %}
<details><summary>Environment that {{ run }} was run in</summary>
<pre>{{ environment }}</pre>
</details>
{% endif %}
</body>
</html>
"""
