"""Groups of processes for messages beside the training."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def cpu_group() -> Any:
    """A new group of all processes, whose messages go from CPU to CPU; called by all. What is sent in it is waited for
    as long as in the job's own group, and not for the half hour that is torch's default."""
    own: Any = dist.group.WORLD
    return dist.new_group(backend="gloo", timeout=own._get_backend(own._device_types[0]).options._timeout)
