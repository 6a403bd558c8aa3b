"""Figure 5 from real pairs of momentum and gradient."""

from itertools import combinations

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.tensorboard import SummaryWriter
from toy import Net, fit, read

from aida_lightning.callbacks import ProjectionRecorder
from aida_lightning.figures.projections import fig5, project
from aida_lightning.logs.events import EventsError
from aida_lightning.logs.runs import read_runs
from aida_lightning.optim._kernels.tracking import mutual_projection

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
]


class Pairs(Net):
    """Keeps m and the gradient with weight decay, as the optimizer's equations have them."""

    def configure_optimizers(self):
        self.pairs = []
        optimizer = super().configure_optimizers()
        self.before = None

        def before(*_):
            self.before = self.features.weight.detach().clone()

        def after(*_):
            weight = self.features.weight
            gradient = weight.grad + 0.5 * self.before
            self.pairs.append((optimizer.state[weight]["exp_avg"].clone(), gradient))

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer


def test_lengths_and_angle_are_those_of_the_momentum_and_the_gradient(tmp_path):
    module = Pairs("aida", weight_decay=0.5)
    recorder = ProjectionRecorder("features.weight", every_n_steps=3)
    fit(tmp_path, module, recorder, gradient_clip_val=0.1)
    logged = read(tmp_path)
    tag = "projection_{}/features.weight"
    assert list(logged[tag.format("cosine")]) == [2, 5, 8, 11]
    for step, cosine in logged[tag.format("cosine")].items():
        m, g = (vector.double().flatten() for vector in module.pairs[step])
        assert logged[tag.format("m_norm")][step] == pytest.approx(m.norm().item(), rel=1e-4)
        assert logged[tag.format("g_norm")][step] == pytest.approx(g.norm().item(), rel=1e-4)
        expected = torch.cosine_similarity(m, g, dim=0).item()
        assert cosine == pytest.approx(expected, abs=1e-4)


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"'body'.*features.weight"):
        fit(tmp_path, Net(), ProjectionRecorder("body"))


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_the_projections_drawn_are_the_optimizers(k):
    m, g = np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.5, 0.25])
    momenta, gradients = project(m, g, k)
    alpha, beta = mutual_projection(m @ m, g @ g, m @ g, k=k, xi=0.0)
    np.testing.assert_allclose(momenta[-1] - gradients[-1], alpha * m + beta * g)
    lengths = [np.linalg.norm(a - b) for a, b in zip(momenta, gradients, strict=True)]
    assert lengths == sorted(lengths, reverse=True)


def test_orthogonal_vectors_project_to_nothing():
    momenta, gradients = project(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 2)
    np.testing.assert_array_equal(momenta[1:] + gradients[1:], np.zeros((4, 2)))


def test_the_figure_shows_the_first_the_middle_and_the_last_recording(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        # At the first step of all m is a multiple of g, and nothing is projected.
        for step, cosine in enumerate([1.0, 0.1, 0.5, 0.9, -0.2, 0.8]):
            writer.add_scalar("projection_m_norm/w", 0.5, step)
            writer.add_scalar("projection_g_norm/w", 2.0, step)
            writer.add_scalar("projection_cosine/w", cosine, step)
    figure = fig5(read_runs([tmp_path]))
    titles = [axis.get_title() for axis in figure.axes]
    assert [title.partition("= ")[2][:4] for title in titles] == ["0.10", "0.90", "0.80"]
    assert all("‖m‖/‖g‖ = 0.25" in title for title in titles)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_the_title_is_no_wider_than_the_figure(tmp_path, steps):
    layer = "features.layer4.1.conv2.weight"
    with SummaryWriter(str(tmp_path / "AdaBelief eps=1e-08 lr=0.001")) as writer:
        for step in range(steps):
            writer.add_scalar(f"projection_m_norm/{layer}", 0.5, step)
            writer.add_scalar(f"projection_g_norm/{layer}", 2.0, step)
            writer.add_scalar(f"projection_cosine/{layer}", 0.5, step)
    figure = fig5(read_runs([tmp_path]))
    figure.draw_without_rendering()
    title = figure._suptitle.get_window_extent()
    assert 0 <= title.x0
    assert title.x1 <= figure.bbox.x1
    assert layer in figure.get_suptitle()


def test_runs_that_had_no_recorder_are_refused_with_how_to_get_one(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("loss", 1.0, 0)
    with pytest.raises(EventsError, match="ProjectionRecorder"):
        fig5(read_runs([tmp_path]))


@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.5, 0.8])
def test_no_label_of_the_figure_covers_another(tmp_path, ratio):
    with SummaryWriter(str(tmp_path)) as writer:
        for step, cosine in enumerate([0.1, 0.8, 0.98], start=1):
            writer.add_scalar("projection_m_norm/w", ratio, step)
            writer.add_scalar("projection_g_norm/w", 1.0, step)
            writer.add_scalar("projection_cosine/w", cosine, step)
    figure = fig5(read_runs([tmp_path]))
    figure.draw_without_rendering()
    for axis in figure.axes:
        labels = [text.get_window_extent() for text in axis.texts if text.get_text()]
        assert len(labels) == 6
        overlapping = sum(a.overlaps(b) for a, b in combinations(labels, 2))
        assert overlapping == 0, axis.get_title()
