"""Copies the curves of `flowgraph run ... --track tensorboard:DIR` into MLflow: `python3 to_mlflow.py DIR`.

Needs `mlflow` and `tensorboard` of PyPI. A run of flowgraph is an experiment, each of its trainings a run of that; where
they go says MLFLOW_TRACKING_URI, such as `sqlite:///mlflow.db`."""

import pathlib
import re
import sys

import mlflow
from mlflow.entities import Metric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

AT_ONCE = 1000  # what MLflow takes in one call

client = mlflow.MlflowClient()
for folder in sorted(pathlib.Path(sys.argv[1]).glob("*/*")):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    metrics = [
        Metric(re.sub(r"[^\w./: -]", "_", tag), event.value, int(1000 * event.wall_time), event.step)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    ]
    if metrics:
        experiment = mlflow.set_experiment(folder.parent.name)
        run = client.create_run(experiment.experiment_id, run_name=folder.name).info.run_id
        for start in range(0, len(metrics), AT_ONCE):
            client.log_batch(run, metrics[start : start + AT_ONCE])
        client.set_terminated(run)
        print(f"{folder.name}: {len(metrics)} values")
