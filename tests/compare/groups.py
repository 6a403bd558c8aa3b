"""A process with a process group, which another process can spawn."""

import atexit

import torch.distributed as dist

from aida_lightning.compare.callbacks import LeaveProcessGroup


def in_group(folder, module_left_it):
    """Write at the very end whether there is a group still."""
    # Handlers run in the reverse order, so that this one is the last.
    atexit.register(lambda: (folder / "in a group").write_text(str(dist.is_initialized())))
    dist.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
    LeaveProcessGroup().setup(None, None, "fit")
    if module_left_it:
        dist.destroy_process_group()
