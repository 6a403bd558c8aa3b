"""Pictures and tables of logged runs, drawn only from event files."""

from typing import Literal

# The figures' numbers in arXiv:2203.13273, and two figures that are not in it.
FigureName = Literal[
    "fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "heatmap", "sweep"
]
