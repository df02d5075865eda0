"""torch's fused Adam for SAELens's trainer."""

from typing import Any

from sae_lens.training.sae_trainer import SAETrainer
from torch.nn import Parameter

from diffsae_lens import _hosts


def fuse_adam(trainer: SAETrainer) -> None:
    """Make the trainer's Adam pass over weights, gradients and moments once instead of ten times.

    Fused Adam copies any non-contiguous tensor twice, so a transposed weight (`feature_major`) is passed
    to it as the contiguous tensor underneath. The steps are the same. Adam's moments have that tensor's
    layout, in checkpoints too, so a run that was started with this has to continue with it.
    """
    optimizer = _hosts.adam_of(trainer)
    _hosts.use_fused_step(optimizer)
    transposed: dict[Parameter, Parameter] = {}
    for group in optimizer.param_groups:
        for i, weight in enumerate(group["params"]):
            if weight.ndim == 2 and not weight.is_contiguous() and weight.T.is_contiguous():
                transposed[weight] = group["params"][i] = Parameter(weight.data.T)

    def hand_over(*_: Any) -> None:
        for weight, seen in transposed.items():
            seen.data = weight.data.T
            seen.grad, weight.grad = None if weight.grad is None else weight.grad.T, None

    if transposed:
        optimizer.register_step_pre_hook(hand_over)
