"""The writing of events that TensorBoard's SummaryWriter has no methods for."""

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

    For TensorBoard, all numbers form one event. This saves each point a separate event with its
    step, its time and two checksums, and most of the time that writing takes.
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
    """Write the layout of the Custom Scalars tab, of which TensorBoard shows a run's last one."""
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
    """Make TensorBoard drop everything that the run has logged so far at or after a step."""
    # Its server treats a run's first START as the start of the run, and only others as restarts.
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

    The run logs the metrics anyway, so no point is written here. If several runs have written
    columns, TensorBoard shows those of one of them.

    Args:
        logger: logger of the run.
        name: name of the row.
        run: hyperparameters of the run: numbers, booleans and strings by name.
        runs: hyperparameters of all runs, of which some may be missing in a run.
        metrics: title of each metric, by its tag.
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
    """Mark a run as finished in the HParams tab."""
    end = SessionEndInfo(status=hparams.STATUS_SUCCESS, end_time_secs=time.time())
    content = HParamsPluginData(session_end_info=end)
    _log_to_hparams(logger, hparams_metadata.SESSION_END_INFO_TAG, content)


def tags_of(logger: TensorBoardLogger, names: Iterable[str]) -> list[str]:
    """Return the tags that Lightning and the SummaryWriter make of metrics' names."""
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
    # A user's own log_metrics may do more, and tensorboardX may mirror every scalar to Comet.
    own = [cls.log_metrics for cls in find("fabric.loggers.tensorboard.TensorBoardLogger")]
    overridden = type(logger).log_metrics not in own
    return not overridden and not has_comet(logger.experiment)


def _add_event(logger: TensorBoardLogger, event: Any, step: int) -> None:
    writer = logger.experiment
    if _is_tensorboard_x(writer):  # It accepts only messages of its own classes.
        from tensorboardX.proto.event_pb2 import Event as OtherEvent

        event = OtherEvent.FromString(event.SerializeToString())
    add_event(writer, event, step)


def _is_tensorboard_x(writer: Any) -> bool:
    return any(cls.__module__.startswith("tensorboardX.") for cls in type(writer).__mro__)
