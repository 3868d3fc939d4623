"""Compare a run's TensorBoard events with its metrics.jsonl, through TensorBoard's own reader.

Usage:  python pipelines/check_tensorboard.py RUN_DIR

Every number of every line of metrics.jsonl (but `step` and `unix_secs`) must be the scalar `split/name` at that step, as
float32, and nothing else may be there. Prints one line per tag; exit 1 on a difference. Needs: tensorboard, numpy.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def from_metrics(path):
    """{tag: {step: value}} of metrics.jsonl."""
    tags = {}
    for line in map(json.loads, path.read_text().splitlines()):
        for name, value in line.items():
            if name in ("step", "unix_secs") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            tags.setdefault(f"{line['split']}/{name}", {})[line["step"]] = np.float32(value)
    return tags


def from_events(directory):
    """{tag: {step: value}} of the event files, with nothing thinned out."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in events.Tags()["tensors"]:  # scalars of newer writers are tensors of rank 0
        found[tag] = [(e.step, float(np.array(e.tensor_proto.float_val)[0])) for e in events.Tensors(tag)]
    for tag, points in found.items():
        if len({step for step, _ in points}) != len(points):
            sys.exit(f"FAIL {tag}: a step is there twice")
    return {tag: {step: np.float32(value) for step, value in points} for tag, points in found.items()}


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    directory = Path(sys.argv[1])
    expected, found = from_metrics(directory / "metrics.jsonl"), from_events(directory)
    failed = not expected
    if not expected:
        print("FAIL metrics.jsonl holds no number")
    for tag in sorted(expected | found):
        ours, theirs = expected.get(tag, {}), found.get(tag, {})
        wrong = [step for step in sorted(ours | theirs)
                 if step not in ours or step not in theirs or not same(ours[step], theirs[step])]
        failed |= bool(wrong)
        if wrong:
            step = wrong[0]
            print(f"FAIL {tag}: {len(wrong)} of {len(ours | theirs)} points differ; at step {step} "
                  f"metrics.jsonl has {ours.get(step)}, TensorBoard {theirs.get(step)}")
        else:
            print(f"ok   {tag}: {len(ours)} points, last {ours[max(ours)]:.6g}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
