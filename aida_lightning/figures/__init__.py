"""Pictures and tables of logged runs, from their event files alone."""

from typing import Literal

# By their numbers in arXiv:2203.13273, and two that are not in it.
FigureName = Literal[
    "fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "heatmap", "sweep"
]
