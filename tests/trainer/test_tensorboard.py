"""Event files, read back by hand: length, checksum, protocol buffer, checksum, as TensorFlow's record format has it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from trainer.tensorboard import with_events, write_hparams


def events(folder: Path, pattern: str) -> Iterator[Any]:
    for file in sorted(folder.glob(pattern)):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_each_epoch_is_written_once_and_passed_on(tmp_path: Path) -> None:
    passed: list[dict[str, Any]] = []

    def report(message: dict[str, Any]) -> bool:
        passed.append(message)
        return message["phase"] == "train"

    both = with_events(report, tmp_path, attempt=2)
    assert both({"phase": "train"})
    assert not list(tmp_path.iterdir())
    for epoch in (3, 4):
        record = {"epoch": epoch, "step": 10 * epoch, "val/loss": 1 / epoch, "lr": 0.1, "world_size": 1, "attempt": 2}
        assert not both({"phase": "epoch", "record": record})
    assert len(passed) == 3
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in events(tmp_path, "*.a0002")
        for value in event.summary.value
    }
    assert {key: round(value, 4) for key, value in scalars.items()} == {
        ("val/loss", 3): 0.3333,
        ("val/loss", 4): 0.25,
        ("lr", 3): 0.1,
        ("lr", 4): 0.1,
    }
    started = [event.step for event in events(tmp_path, "*.a0002") if event.HasField("session_log")]
    assert started == [3], "what an earlier attempt said of epoch 3 does not count"


def test_hparams_hold_the_parameters_and_name_the_metric(tmp_path: Path) -> None:
    parameters = {"optim.lr": 1e-3, "optim.schedule": "constant", "augment.crop_scale": [0.5, 1.0]}
    write_hparams(tmp_path, parameters, "val/accuracy")
    found = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events(tmp_path, "*.hparams")
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    (start,) = [one.session_start_info for one in found if one.HasField("session_start_info")]
    assert start.hparams["optim.lr"].number_value == 1e-3
    assert start.hparams["optim.schedule"].string_value == "constant"
    assert start.hparams["augment.crop_scale"].string_value == "[0.5, 1.0]"
    (experiment,) = [one.experiment for one in found if one.HasField("experiment")]
    assert [info.name.tag for info in experiment.metric_infos] == ["val/accuracy"]
