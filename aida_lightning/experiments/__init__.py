"""The paths that comparisons were documented under before: files that name them stay valid."""

import sys

from aida_lightning.callbacks import projection_recorder
from aida_lightning.compare import comparison, experiment, loading, methods

sys.modules |= {
    f"{__name__}.compare": comparison,
    f"{__name__}.experiment": experiment,
    f"{__name__}.loading": loading,
    f"{__name__}.methods": methods,
    f"{__name__}.projections": projection_recorder,
}
