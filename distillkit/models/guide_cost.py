"""What an evaluation of a guide costs beside one of the teacher that it guides."""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from distillkit.contracts.condition import Condition
from distillkit.contracts.conditioner import ClassLabels, Unconditional
from distillkit.contracts.denoiser import Denoiser
from distillkit.contracts.teacher import Teacher
from distillkit.models.build import build_denoiser


def guide_cost(teacher: Teacher) -> float:
    """Forward-equivalents of one evaluation of the teacher's guide: its floating-point operations as a share of those
    of the teacher's network; 0 without a guide.

    Operations are counted of networks without weights, so that neither their place nor their type is any matter. Where
    they cannot be counted, as for conditions of text, whose encoders would have to be loaded, parameters stand in for
    them.
    """
    guide = teacher.guide
    if guide is None:
        return 0.0
    conditioner, shape = teacher.conditioner, tuple(teacher.spec.shape)
    if isinstance(conditioner, ClassLabels | Unconditional):
        labels = isinstance(conditioner, ClassLabels)
        own = _operations(_described(teacher.denoiser), shape, labels=labels)
        other = _operations(_described(guide.denoiser), shape, labels=labels and guide.conditional)
        if own and other:
            return other / own
    own, other = (sum(p.numel() for p in denoiser.parameters()) for denoiser in teacher.denoisers)
    return other / own if own and other else 1.0


def _described(denoiser: Denoiser) -> str:
    return json.dumps(denoiser.description, sort_keys=True)


@lru_cache(maxsize=64)
def _operations(description: str, shape: tuple[int, ...], *, labels: bool) -> int:
    """Of a pass of one sample; 0 where they cannot be counted.

    Args:
        description: of the network, as JSON.
        labels: whether it is given the label of a class.
    """
    meta = torch.device("meta")
    try:
        with meta, torch.no_grad(), FlopCounterMode(display=False) as counter:
            denoiser: Denoiser = build_denoiser(json.loads(description)).to(meta).eval()
            condition = Condition(labels=torch.zeros(1, dtype=torch.int64)) if labels else Condition()
            denoiser(torch.zeros(1, *shape), torch.ones(1), condition)
        return int(counter.get_total_flops())
    except Exception:  # a plugin's network may need real memory; then there is another measure
        return 0
