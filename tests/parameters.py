"""What most tests of the family are run for: every member, every kernel."""

import pytest
import reference

OPTIMIZERS = sorted(reference.MEMBERS)
KERNELS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
