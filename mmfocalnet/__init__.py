"""mmfocalnet: Focal Modulation Networks as a backbone for OpenMMLab 2.x.

Importing the package registers everything: ``type='FocalNet'`` works in any mmdet or mmseg
config after ``custom_imports = dict(imports=['mmfocalnet'])``. PyTorch and MMEngine are imported
when they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmfocalnet.first_use import register_on_first_use
from mmfocalnet.version import __version__

if TYPE_CHECKING:
    from mmfocalnet.registered import (
        AtomicCheckpointHook,
        CheckLabelsHook,
        CheckLossesHook,
        ClassVisualizationHook,
        FocalModulation,
        FocalNet,
        FocalNetClassifier,
        FocalNetLayerDecayOptimizerConstructor,
        FusedAdamW,
        ImageFolder,
        MatchClassesHook,
        PlainParamGroupsHook,
        SeededClassBalancedDataset,
        SeededInfiniteSampler,
        SeededSampler,
        SeedIterationsHook,
        SeedSample,
        SkipUnreadable,
        TolerantParamSchedulerHook,
        TopKAccuracy,
        UnreadableFilesHook,
    )

__all__ = [
    'AtomicCheckpointHook',
    'CheckLabelsHook',
    'CheckLossesHook',
    'ClassVisualizationHook',
    'FocalModulation',
    'FocalNet',
    'FocalNetClassifier',
    'FocalNetLayerDecayOptimizerConstructor',
    'FusedAdamW',
    'ImageFolder',
    'MatchClassesHook',
    'PlainParamGroupsHook',
    'SeedIterationsHook',
    'SeedSample',
    'SeededClassBalancedDataset',
    'SeededInfiniteSampler',
    'SeededSampler',
    'SkipUnreadable',
    'TolerantParamSchedulerHook',
    'TopKAccuracy',
    'UnreadableFilesHook',
    '__version__',
]

register_on_first_use()


def __getattr__(name: str) -> Any:
    """Import the public names, and modules of the package, when they are first used."""
    if name in __all__:
        return getattr(import_module('mmfocalnet.registered'), name)
    module = f'{__name__}.{name}'
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}') from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
