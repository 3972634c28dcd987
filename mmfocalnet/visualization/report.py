"""A training at a glance: one HTML file with its curves, predictions, config and environment."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import Environment
from markupsafe import Markup
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement
from mmengine.utils import track_iter_progress
from PIL import Image, ImageDraw, ImageFont

from mmfocalnet.errors import CheckpointError, ConfigError, UserError
from mmfocalnet.files import replacing
from mmfocalnet.inference.draw import ink_on
from mmfocalnet.inference.predictor import find_palette, load_model
from mmfocalnet.launch import check_data, check_start, read_config
from mmfocalnet.visualization.curves import (
    Curve,
    History,
    draw_panel,
    key_curve,
    loss_terms,
    metrics,
    read_history,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

IGNORED = 255
# Pixels of a picture's longer side: text on smaller ones hides what they show.
_SMALLEST, _LARGEST = 320, 640
_GAP = 6
_SHOWN_FIRST = 4
# What mmdet and mmseg measure in percent, COCO's after `metrics`.
_PERCENT = re.compile(r'coco|[am](Acc|IoU|Dice|Fscore|Precision|Recall)$')


@dataclass
class _Gallery:
    """Pictures of predictions, the best first, or the reason why there are none.

    Attributes:
        pictures: ``url``, ``name``, ``score``, ``meaning`` of it, and ``classes``, for each.
        caption: What the pictures show.
        classes: Colour per class.
        reasons: Sentences on what is missing.
    """

    pictures: list[dict[str, Any]] = field(default_factory=list)
    caption: str = ''
    classes: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


def write_report(work_dir: Path, out: Path, images: int = 16) -> list[str]:
    """Write the report of a training, finished or not.

    Args:
        work_dir: Folder that MMEngine's Runner wrote; several runs in it are joined.
        out: HTML file to write, which needs no other file.
        images: Number of held-out images to predict with the newest checkpoint, on the CPU;
            0 for none. Defaults to 16.

    Returns:
        Sentences on what is missing in the report.

    Raises:
        UserError: If no run was started in `work_dir`, or `out` cannot be written.
    """
    history = read_history(work_dir)
    run = history.runs[-1]
    environment = _environment(run)
    config_path, config_text, cfg = _config(work_dir, run)
    notes = _notes(history, environment, cfg)
    gallery = _gallery(work_dir, cfg, images) if images else _Gallery()
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
    return notes + gallery.reasons


def _write(out: Path, text: str) -> None:
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
    for path in (run / 'vis_data/config.py', *dumped):
        if path.is_file():
            text = path.read_text(errors='replace')
            try:
                return str(path), text, read_config(str(path))
            except ConfigError:
                return str(path), text, None
    return '', '', None


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
    broken = [e['step'] for e in history.training if not math.isfinite(e.get('loss', 0))]
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


# Predictions.


def _gallery(work_dir: Path, cfg: Config | None, images: int) -> _Gallery:
    """Predict held-out images; whatever prevents that becomes a reason in the report."""
    gallery = _Gallery()
    try:
        if cfg is None:
            raise ConfigError('there is no config that could be read.')
        _fill(gallery, work_dir, cfg, images)
    except UserError as error:
        gallery.reasons.append(f'No gallery: {error}')
    except Exception as error:  # the curves are worth having, whatever a model of a user raises
        reason = ' '.join(str(error).split())
        gallery.reasons.append(
            f'No gallery: the model could not be run ({type(error).__name__}: {reason}).'
        )
    return gallery


def _fill(gallery: _Gallery, work_dir: Path, cfg: Config, images: int) -> None:
    if not cfg.get('val_dataloader'):
        raise ConfigError('the config has no val_dataloader, and so no held-out images.')
    check_data(cfg, ('val',))
    checkpoint, damaged = _newest_checkpoint(work_dir, cfg)
    gallery.reasons += damaged
    threshold = cfg.get('default_hooks', {}).get('visualization', {}).get('score_thr', 0.3)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        model, _ = load_model(cfg, str(checkpoint))
        # Evenly from the whole set, which may be sorted.
        chosen = np.linspace(0, len(dataset) - 1, min(images, len(dataset))).round().astype(int)
        pictures = [
            _picture(model, dataset, index, threshold)
            for index in track_iter_progress(chosen.tolist())
        ]
    gallery.pictures = sorted(pictures, key=lambda picture: picture['score'], reverse=True)
    used = {name: colour for picture in pictures for name, colour in picture['classes'].items()}
    gallery.classes = {name: used[name] for name in dataset.metainfo['classes'] if name in used}
    gallery.caption = (
        f'{len(pictures)} of {len(dataset)} held-out images, predicted by {checkpoint.name} on '
        f'the CPU; left the truth, right the prediction. '
        f'{pictures[0]["meaning"].format(threshold=threshold)}'
    )


def _newest_checkpoint(work_dir: Path, cfg: Config) -> tuple[Path, list[str]]:
    """The checkpoint of most iterations that loads safely, and what is wrong with newer ones."""
    damaged = []
    for path in sorted(Path(work_dir).glob('*.pth'), key=_age, reverse=True):
        try:
            check_start(Config({'load_from': str(path), 'work_dir': str(work_dir)}))
        except CheckpointError as error:
            damaged.append(f'Not used for the gallery: {error}')
        else:
            return path, damaged
    raise CheckpointError(
        ' '.join(damaged)
        or f'{work_dir} has no checkpoint yet; one is saved every '
        f'{cfg.get("default_hooks", {}).get("checkpoint", {}).get("interval", "few")} '
        'epochs or iterations.'
    )


def _age(path: Path) -> tuple[int, float]:
    number = re.search(r'_(\d+)$', path.stem)
    return (int(number[1]) if number else -1, path.stat().st_mtime)


def _picture(
    model: torch.nn.Module, dataset: Dataset, index: int, threshold: float
) -> dict[str, Any]:
    """Predict one image: its picture as a data URL, its score and what that means."""
    with torch.no_grad():
        sample = model.test_step(pseudo_collate([dataset[index]]))[0].cpu()
    truth, prediction = _labels(sample, threshold)
    classes = dataset.metainfo['classes']
    if truth is None:
        raise ConfigError('the pipeline of val_dataloader loads no annotations to compare with.')
    with Image.open(sample.img_path) as file:
        image = np.asarray(file.convert('RGB'))
    colours = find_palette(dataset.metainfo.get('palette'), len(classes))
    halves = [_drawn(image, labels, classes, colours) for labels in (truth, prediction)]
    gap = np.full_like(halves[0][:, :_GAP], 255)
    boxes, panoptic = isinstance(truth, BaseDataElement), 'pred_panoptic_seg' in sample
    return {
        'url': _data_url(np.concatenate((halves[0], gap, halves[1]), axis=1)),
        'name': Path(sample.img_path).name,
        'score': box_quality(truth, prediction)
        if boxes
        else mean_iou(truth, prediction, len(classes)),
        'meaning': (_BOXES if boxes else _LABELS) + (_PANOPTIC if panoptic else ''),
        'classes': {
            classes[label]: '#{:02x}{:02x}{:02x}'.format(*colours[label])
            for label in sorted(_present(truth) | _present(prediction))
            if label < len(classes)
        },
    }


def _labels(
    sample: BaseDataElement, threshold: float
) -> tuple[BaseDataElement | Tensor | None, BaseDataElement | Tensor]:
    """Truth and prediction of a sample: instances, or labels (1, H, W) of pixels."""
    if 'pred_panoptic_seg' in sample:
        from mmdet.evaluation.functional import INSTANCE_OFFSET

        prediction = sample.pred_panoptic_seg.sem_seg % INSTANCE_OFFSET
        return sample.gt_sem_seg.sem_seg if 'gt_sem_seg' in sample else None, prediction
    if 'pred_sem_seg' in sample:
        truth = sample.gt_sem_seg.data if 'gt_sem_seg' in sample else None
        return truth, sample.pred_sem_seg.data
    found = sample.pred_instances
    return sample.get('gt_instances'), found[found.scores > threshold]


def _present(labels: BaseDataElement | Tensor) -> set[int]:
    values = labels.labels if isinstance(labels, BaseDataElement) else labels
    return set(values.unique().tolist()) - {IGNORED}


def _drawn(
    image: np.ndarray,
    labels: BaseDataElement | Tensor,
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> np.ndarray:
    """An image (H, W, 3) under its labels, scaled to a size that is good to look at."""
    # What is coloured itself would change the colour of its class.
    grey = image.mean(axis=2, keepdims=True)
    image = image.copy()
    for label, area in _areas(labels):
        if label < len(classes):
            image[area] = 0.45 * grey[area] + 0.55 * np.array(colours[label])
    picture = Image.fromarray(image)
    longer = max(picture.size)
    factor = min(max(longer, _SMALLEST), _LARGEST) / longer
    picture = picture.resize([max(1, round(side * factor)) for side in picture.size])
    if isinstance(labels, BaseDataElement):
        _draw_boxes(picture, factor, labels, classes, colours)
    return np.asarray(picture)


def _areas(labels: BaseDataElement | Tensor) -> list[tuple[int, np.ndarray]]:
    """The class and area (H, W) of every mask, or of every class of a map of labels."""
    if not isinstance(labels, BaseDataElement):
        return [(label, (labels[0] == label).numpy()) for label in _present(labels)]
    masks = labels.get('masks')
    if masks is None:
        return []
    masks = masks.numpy() if isinstance(masks, torch.Tensor) else masks.to_ndarray()
    areas = list(zip(labels.labels.tolist(), masks.astype(bool), strict=True))
    # Those of high scores last, above the others.
    return [areas[number] for number in _order(labels)]


def _draw_boxes(
    picture: Image.Image,
    factor: float,
    instances: BaseDataElement,
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
) -> None:
    """Draw named boxes."""
    from mmdet.structures.bbox import get_box_tensor

    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default()
    boxes = (get_box_tensor(instances.bboxes) * factor).tolist()
    for number in _order(instances):
        label, box = int(instances.labels[number]), boxes[number]
        score = f' {instances.scores[number]:.2f}' if 'scores' in instances else ''
        text = classes[label] + score
        draw.rectangle(box, outline=colours[label], width=2)
        _, _, right, bottom = draw.textbbox((0, 0), text, font=font)
        x = max(0, min(box[0], picture.width - right - 4))
        y = max(0, box[1] - bottom - 4)
        draw.rectangle((x, y, x + right + 4, y + bottom + 4), fill=colours[label])
        draw.text((x + 2, y + 2), text, font=font, fill=ink_on(colours[label]))


def _order(instances: BaseDataElement) -> list[int]:
    """Numbers of instances by ascending score; those of the truth have none."""
    if 'scores' in instances:
        return instances.scores.argsort().tolist()
    return list(range(len(instances)))


_LABELS = 'The score is the mean IoU of the classes in the truth or in the prediction.'
_PANOPTIC = ' Instances of one class are not told apart, neither here nor in the score.'
_BOXES = (
    'Predictions of a confidence above {threshold} are drawn and counted. The score is twice '
    'the sum of the IoUs of matched boxes (of one class, IoU 0.5 or more) over the number of '
    'true and predicted boxes: 1 if all match exactly.'
)


def mean_iou(truth: Tensor, prediction: Tensor, num_classes: int) -> float:
    """Mean IoU of the classes in one image's truth or prediction.

    Args:
        truth: Labels (1, H, W); 255 is ignored.
        prediction: Labels (1, H, W); `num_classes` and above are no class.
        num_classes: Number of classes.

    Returns:
        The mean, 0 to 1; 1 for an image without labels.
    """
    valid = truth != IGNORED
    truth, prediction = truth[valid].long(), prediction[valid].long()
    classes = [
        label for label in torch.cat((truth, prediction)).unique().tolist() if label < num_classes
    ]
    overlaps = [
        ((truth == label) & (prediction == label)).sum()
        / ((truth == label) | (prediction == label)).sum()
        for label in classes
    ]
    return float(torch.stack(overlaps).mean()) if overlaps else 1.0


def box_quality(truth: BaseDataElement, prediction: BaseDataElement) -> float:
    """Panoptic quality with boxes in place of masks, classes taken together, of one image.

    Predictions are matched in the order of their scores, each to the true box of its class
    that it overlaps most and that is still free.

    Args:
        truth: ``bboxes`` (N, 4) as x1, y1, x2, y2 in pixels and ``labels`` (N).
        prediction: ``bboxes`` (M, 4), ``labels`` (M) and ``scores`` (M).

    Returns:
        The quality, 0 to 1; 1 if there is nothing to find and nothing was found.
    """
    from mmdet.structures.bbox import bbox_overlaps, get_box_tensor

    if not len(truth) + len(prediction):
        return 1.0
    overlaps = bbox_overlaps(get_box_tensor(prediction.bboxes), get_box_tensor(truth.bboxes))
    overlaps = overlaps * (prediction.labels[:, None] == truth.labels[None])
    total = 0.0
    for row in prediction.scores.argsort(descending=True) if len(truth) else ():
        best = overlaps[row].argmax()
        if overlaps[row, best] >= 0.5:
            total += float(overlaps[row, best])
            overlaps[:, best] = 0
    return 2 * total / (len(truth) + len(prediction))


def _data_url(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format='JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'


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
{% if gallery.pictures or gallery.reasons %}
<h2>Predictions</h2>
{% endif %}
{% for reason in gallery.reasons %}
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
