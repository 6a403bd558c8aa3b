"""The private names of other packages: in one module, there, and doing what they are used for.

Nothing here imports aida_lightning before the names are looked for that its import needs.
"""

import ast
import inspect
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboardX import SummaryWriter as OtherWriter
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard
from torch.optim import optimizer as torch_optimizer
from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).parents[1]
FOLDERS = ["aida_lightning", "callbacks", "datamodules", "example_modules"]
ONE_PLACE = "aida_lightning/_private.py"
# What torch documents under such a name, in "Foreach Operations".
DOCUMENTED = "_foreach_"
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "accelerator": "cpu",
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    pytest.mark.filterwarnings("ignore:(?s).*Jsonargparse:DeprecationWarning"),
]


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name.strip("_") != ""


def private_names(tree):
    """Yield the private names that code asks of any object or package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("aida_"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            names = [getattr(node.args[1], "value", "")]
        else:
            continue
        yield from (name for name in names if is_private(str(name)))


def defined_names(tree):
    """Yield the names that code gives to what is its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if ast.unparse(node.value) in ("self", "cls"):
                yield node.attr


def test_one_module_touches_what_is_private_to_other_packages():
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    ours = {name for tree in trees.values() for name in defined_names(tree)}
    foreign = {
        path: {name for name in private_names(tree) if not name.startswith(DOCUMENTED)} - ours
        for path, tree in trees.items()
    }
    assert "_should_accumulate" in foreign.pop(ONE_PLACE)
    assert {path: names for path, names in foreign.items() if names} == {}, ONE_PLACE


def test_each_name_of_that_module_is_asked_for_below():
    tree = ast.parse((ROOT / ONE_PLACE).read_text(encoding="utf-8"))
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    there |= {node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)}
    here = ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    asked = {node.attr for node in here if isinstance(node, ast.Attribute)}
    assert there - asked == set()


@pytest.mark.parametrize(
    ("module", "name", "use"),
    [
        (torch_optimizer, "_default_to_fused_or_foreach", "which kernel takes a group"),
        (torch_optimizer, "_get_capturable_supported_devices", "what can be captured"),
        (torch_optimizer, "_get_scalar_dtype", "the dtype of the count of steps"),
        (torch_optimizer, "_use_grad_for_differentiable", "the option differentiable"),
        (torch.nn.utils.parametrizations, "_WeightNorm", "which parameters are gains"),
    ],
)
def test_what_the_import_needs_of_torch_is_there(module, name, use):
    assert hasattr(module, name), (
        f"torch {version('torch')} has no {module.__name__}.{name} any more, which told {use}, and "
        f"without which aida_lightning cannot be imported: write it out in {ONE_PLACE}"
    )


@pytest.fixture
def private():
    from aida_lightning import _private

    return _private


@contextmanager
def needed(function):
    """Say what is lost where a name is missing, in the words of the function that asks for it."""
    try:
        yield function
    except (AttributeError, ImportError) as error:
        pytest.fail(f"{error}. {ONE_PLACE}, {function.__name__}: {inspect.getdoc(function)}")


@pytest.fixture
def group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_name_that_is_gone_fails_with_a_sentence(private):
    with pytest.raises(pytest.fail.Exception, match=r"(?s)'object' .*has no .*Without it"):
        with needed(private.prefix_of) as prefix_of:
            prefix_of(object())


def test_torchs_optimizers_are_made_of_these(private):
    layer = nn.Parameter(torch.zeros(2))
    assert private.default_to_fused_or_foreach([layer], False) == (False, False)
    assert "cuda" in private.capturable_devices()
    assert private.step_dtype() == torch.get_default_dtype()

    class Asked(torch.optim.SGD):
        @private.use_grad_for_differentiable
        def step(self):
            return torch.is_grad_enabled()

    assert Asked([layer], 0.1, differentiable=True).step()
    assert not Asked([layer], 0.1).step()


def test_torchs_optimizers_check_that_a_captured_step_can_be(private, monkeypatch):
    asked = []
    names = [name for name in dir(torch.optim.SGD) if name.endswith("_graph_capture_health_check")]
    for name in names:
        monkeypatch.setattr(torch.optim.SGD, name, lambda optimizer: asked.append(optimizer))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1)
    private.check_graph_capture(optimizer)
    assert asked == [optimizer], inspect.getdoc(private.check_graph_capture)


def test_both_weight_normalizations_are_known(private):
    new = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert isinstance(new.parametrizations.weight[0], private.WeightNormParametrization)
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(2, 2))
    with needed(private.weight_norm_hooks) as weight_norm_hooks:
        assert [hook.name for hook in weight_norm_hooks(old)] == ["weight"]


@pytest.mark.filterwarnings("ignore:.*FSDP")
@pytest.mark.filterwarnings("ignore:.*FullyShardedDataParallel")
def test_fsdp1_marks_what_it_flattened(private, group):
    sharded = FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu"))
    assert [*map(private.is_flattened, sharded.parameters())] == [True], inspect.getdoc(
        private.is_flattened
    )
    assert not private.is_flattened(nn.Parameter(torch.zeros(2)))


def test_placements_split_rows_as_chunks(private):
    with needed(private.chunks_of) as chunks_of:
        chunks = chunks_of(Shard(0), torch.arange(4), 3)
        assert [chunk.tolist() for chunk in chunks] == [[0, 1], [2, 3], []]


@pytest.mark.filterwarnings("ignore:.*FSDP")
@pytest.mark.filterwarnings("ignore:.*FullyShardedDataParallel")
def test_wrappers_put_these_into_the_names_of_parameters(private, group):
    wrapped = [
        torch.compile(nn.Linear(2, 2)),
        checkpoint_wrapper(nn.Linear(2, 2)),
        FullyShardedDataParallel(nn.Linear(2, 2), device_id=torch.device("cpu")),
        Fabric(accelerator="cpu", devices=1).setup_module(nn.Linear(2, 2)),
    ]
    for module, name in zip(wrapped, private.WRAPPERS, strict=True):
        assert name in dict(module.named_children()), f"{type(module)} names its module anew"


def test_torch_compiles_cpp_under_this_name(private):
    with needed(private.cpp_code_cache) as cpp_code_cache:
        assert "extra_flags" in inspect.signature(cpp_code_cache().load_async).parameters


def test_a_trainer_tells_where_it_stands(private, tmp_path):
    asked = [
        private.steps_taken,
        private.accumulates,
        private.is_last_batch,
        private.updates_logs,
    ]
    told = []

    class Asks(Callback):
        def on_train_batch_end(self, trainer, *args):
            told.append([])
            for function in asked:
                with needed(function):
                    told[-1].append(function(trainer))
            with needed(private.callback_metrics_of) as callback_metrics_of:
                callback_metrics_of(trainer)["ours"] = torch.tensor(1.0)

    trainer = Trainer(
        default_root_dir=tmp_path, callbacks=[Asks()], max_epochs=1, limit_train_batches=5,
        limit_val_batches=0, accumulate_grad_batches=2, log_every_n_steps=2, **QUIET,
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert told == [
        [0, True, False, False],
        [0, False, False, False],  # a step is counted after its batch's hooks
        [1, True, False, True],
        [1, False, False, True],
        [2, False, True, False],  # the last batch ends in a step, whatever it accumulated
    ]
    assert trainer.callback_metrics["ours"] == 1, inspect.getdoc(private.callback_metrics_of)


def test_a_callback_has_a_key_that_tells_its_options(private):
    with needed(private.state_key) as state_key:
        assert state_key(Callback(), layer="head") == "Callback{'layer': 'head'}"


@pytest.mark.parametrize(("strategy", "again"), [("ddp", True), ("ddp_spawn", False)])
def test_a_strategy_that_starts_the_script_again_is_known(private, strategy, again):
    trainer = Trainer(strategy=strategy, devices=2, **QUIET)
    assert private.starts_script_again(trainer) is again, inspect.getdoc(
        private.starts_script_again
    )


def test_a_parser_knows_its_optimizers_and_lr_schedulers(private):
    parser = LightningArgumentParser()
    parser.add_optimizer_args(torch.optim.SGD)
    parser.add_lr_scheduler_args(torch.optim.lr_scheduler.StepLR, "schedule", "model.schedule")
    with needed(private.optimizers_of) as optimizers_of:
        assert optimizers_of(parser) == {"optimizer": (torch.optim.SGD, "AUTOMATIC")}
    with needed(private.lr_schedulers_of) as lr_schedulers_of:
        scheduler = torch.optim.lr_scheduler.StepLR
        assert lr_schedulers_of(parser) == {"schedule": (scheduler, "model.schedule")}


def test_lightnings_logger_keeps_its_prefix(private, tmp_path):
    with needed(private.prefix_of) as prefix_of:
        assert prefix_of(TensorBoardLogger(tmp_path, prefix="mine")) == "mine"
        assert prefix_of(TensorBoardLogger(tmp_path)) == ""


@pytest.mark.parametrize("cls", [SummaryWriter, OtherWriter])
def test_a_summary_writer_takes_events_of_any_kind(private, cls, tmp_path):
    if cls is OtherWriter:
        from tensorboardX.proto.event_pb2 import Event as OtherEvent

        event = OtherEvent.FromString(Event().SerializeToString())
    else:
        event = Event()
    with cls(str(tmp_path)) as writer, needed(private.add_event) as add_event:
        add_event(writer, event, 7)
    (file,) = tmp_path.iterdir()
    assert 7 in [event.step for event in EventFileLoader(str(file)).Load()]


def test_tensorboard_x_tells_its_tags_and_its_mirror(private, tmp_path):
    with OtherWriter(str(tmp_path), comet_config={"disabled": True}) as writer:
        assert writer._comet_config == {"disabled": True}, inspect.getdoc(private.has_comet)
        assert not private.has_comet(writer)
        assert private.has_comet(SimpleNamespace(_comet_config={"disabled": False}))
    with needed(private.tensorboard_x_tag) as tensorboard_x_tag:
        assert tensorboard_x_tag("loss (train)") == "loss__train_"


def test_submitit_tells_the_names_of_its_options(private):
    pytest.importorskip("submitit", reason="needs submitit: pip install 'aida-lightning[cluster]'")
    documented = {"timeout_min", "mem_gb", "gpus_per_node", "cpus_per_task", "slurm_partition"}
    documented |= {"slurm_account", "slurm_qos", "slurm_constraint", "slurm_array_parallelism"}
    documented |= {"slurm_setup", "slurm_max_num_timeout", "slurm_signal_delay_s", "local_setup"}
    with needed(private.submitit_options) as options:
        assert documented <= options()
