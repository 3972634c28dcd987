"""Parameter groups that compilers accept."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmfocalnet.registry import register


@register(HOOKS)
class PlainParamGroupsHook(Hook):
    """Make the optimizers' parameter groups dicts.

    MMEngine makes them ``ConfigDict``, on which `torch.compile` fails in ``train_step``. The tools
    use this hook in runs with ``compile``.
    """

    def before_train(self, runner: Runner) -> None:
        """Replace the groups in place."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        for one in wrappers:
            one.optimizer.param_groups[:] = map(dict, one.optimizer.param_groups)
