"""Copies the curves of `flowgraph run ... --track tensorboard:DIR` into Weights & Biases: `python3 to_wandb.py DIR`.

Needs `wandb` and `tensorboard` of PyPI. Each training is a run, those of one run of flowgraph are a group; WANDB_PROJECT
names the project, and WANDB_MODE=offline keeps all in `wandb/` for a later `wandb sync`."""

import collections
import pathlib
import sys

import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

for folder in sorted(pathlib.Path(sys.argv[1]).glob("*/*")):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    steps = collections.defaultdict(dict)
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            steps[event.step][tag] = event.value
    if steps:
        with wandb.init(group=folder.parent.name, name=folder.name) as run:
            for step in sorted(steps):
                run.log(steps[step], step=step)
        print(f"{folder.name}: {sum(map(len, steps.values()))} values")
