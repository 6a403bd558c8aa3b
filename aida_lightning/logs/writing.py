"""What is written to TensorBoard past the methods of its SummaryWriter."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2 as hparams
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from aida_lightning._lightning import Logger, TensorBoardLogger, find
from aida_lightning._private import add_event, has_comet, prefix_of, tensorboard_x_tag
from aida_lightning.logs.names import kept_names

_KINDS = {
    bool: hparams.DATA_TYPE_BOOL,
    int: hparams.DATA_TYPE_FLOAT64,
    float: hparams.DATA_TYPE_FLOAT64,
    str: hparams.DATA_TYPE_STRING,
}


def log_scalars(logger: Logger, scalars: Mapping[tuple[str, ...], float], step: int) -> None:
    """Log numbers under names of several parts, joined by the logger's own separator.

    To TensorBoard they go as one event. Of each point that saves an event of its own, its step, its
    time and two checksums, and most of the time that it takes to write one.
    """
    if not scalars:
        return
    metrics = {logger.group_separator.join(parts): number for parts, number in scalars.items()}
    if isinstance(logger, TensorBoardLogger) and _logs_as_lightning_does(logger):
        values = [
            Summary.Value(tag=tag, simple_value=number)
            for tag, number in zip(tags_of(logger, metrics), metrics.values(), strict=True)
        ]
        _add_event(logger, Event(summary=Summary(value=values)), step)
    else:
        names = kept_names(logger, metrics)
        logger.log_metrics({names[name]: number for name, number in metrics.items()}, step=step)


def log_layout(logger: TensorBoardLogger, layout: Layout) -> None:
    """Write the layout of the Custom Scalars tab; of all in a run TensorBoard shows the last."""
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=[layout.SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    plugin = SummaryMetadata.PluginData(plugin_name=custom_scalars.PLUGIN_NAME)
    value = Summary.Value(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        tensor=tensor,
        metadata=SummaryMetadata(plugin_data=plugin),
    )
    _add_event(logger, Event(summary=Summary(value=[value])), 0)


def log_restart(logger: TensorBoardLogger, step: int) -> None:
    """Have TensorBoard drop all that the run has logged so far at a step or after it."""
    # Its server takes a run's first START for the start of the run, and only others for restarts.
    for _ in range(2):
        _add_event(logger, Event(session_log=SessionLog(status=SessionLog.START)), step)


def log_hyperparameters(
    logger: TensorBoardLogger,
    name: str,
    run: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, str],
) -> None:
    """Write the row of a run in the HParams tab, and the columns of all runs.

    The metrics are those that the run logs anyhow, so that no point is written here. Of the columns
    that several runs have written, TensorBoard shows those of one of them.

    Args:
        logger: the run's logger.
        name: what to call the row.
        run: the hyperparameters of the run: numbers, booleans and texts by name.
        runs: those of all runs, in which a hyperparameter may be missing.
        metrics: what to call each metric, by its tag.
    """
    columns = []
    for key in dict.fromkeys(key for values in runs for key in values):
        values = [values[key] for values in runs if key in values]
        kinds = {_KINDS[type(value)] for value in values}
        columns.append(
            hparams.HParamInfo(
                name=key,
                type=kinds.pop() if len(kinds) == 1 else hparams.DATA_TYPE_STRING,
                differs=len({*values}) > 1 or len(values) < len(runs),
            )
        )
    shown = [
        hparams.MetricInfo(name=hparams.MetricName(tag=tag), display_name=title)
        for tag, title in zip(tags_of(logger, metrics), metrics.values(), strict=True)
    ]
    table = hparams.Experiment(hparam_infos=columns, metric_infos=shown)
    _log_to_hparams(logger, hparams_metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=table))
    row = Struct()
    row.update(run)
    start = SessionStartInfo(hparams=row.fields, group_name=name, start_time_secs=time.time())
    content = HParamsPluginData(session_start_info=start)
    _log_to_hparams(logger, hparams_metadata.SESSION_START_INFO_TAG, content)


def log_success(logger: TensorBoardLogger) -> None:
    """Mark a run in the HParams tab as one that came to its end."""
    end = SessionEndInfo(status=hparams.STATUS_SUCCESS, end_time_secs=time.time())
    content = HParamsPluginData(session_end_info=end)
    _log_to_hparams(logger, hparams_metadata.SESSION_END_INFO_TAG, content)


def tags_of(logger: TensorBoardLogger, names: Iterable[str]) -> list[str]:
    """Give the tags that Lightning and the SummaryWriter make of metrics' names."""
    prefix = f"{name}{logger.LOGGER_JOIN_CHAR}" if (name := prefix_of(logger)) else ""
    tags = [f"{prefix}{name}" for name in names]
    if _is_tensorboard_x(logger.experiment):
        return [tensorboard_x_tag(tag) for tag in tags]
    return tags


def _log_to_hparams(logger: TensorBoardLogger, tag: str, content: HParamsPluginData) -> None:
    described = hparams_metadata.create_summary_metadata(content)
    value = Summary.Value(tag=tag, metadata=described, tensor=hparams_metadata.NULL_TENSOR)
    _add_event(logger, Event(summary=Summary(value=[value])), 0)


def _logs_as_lightning_does(logger: TensorBoardLogger) -> bool:
    # Someone's own log_metrics may do more; and tensorboardX may mirror every scalar to Comet.
    own = [cls.log_metrics for cls in find("fabric.loggers.tensorboard.TensorBoardLogger")]
    overridden = type(logger).log_metrics not in own
    return not overridden and not has_comet(logger.experiment)


def _add_event(logger: TensorBoardLogger, event: Any, step: int) -> None:
    writer = logger.experiment
    if _is_tensorboard_x(writer):  # which takes messages of its own classes only
        from tensorboardX.proto.event_pb2 import Event as OtherEvent

        event = OtherEvent.FromString(event.SerializeToString())
    add_event(writer, event, step)


def _is_tensorboard_x(writer: Any) -> bool:
    return any(cls.__module__.startswith("tensorboardX.") for cls in type(writer).__mro__)
