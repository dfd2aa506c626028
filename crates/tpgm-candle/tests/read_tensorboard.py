"""Reads a TensorBoard folder with TensorBoard's own reader and prints every scalar as `tag step value`.

    python read_tensorboard.py FOLDER      # needs `pip install tensorboard`
"""

import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

accumulator = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
accumulator.Reload()
for tag in sorted(accumulator.Tags()["scalars"]):
    for event in accumulator.Scalars(tag):
        print(tag, event.step, repr(event.value))
