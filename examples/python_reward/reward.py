"""A reward in Python: answers that end with a full stop, the shorter the better."""

import json
import sys


def reward(prompt, completion, finished):
    words = completion.split()
    return float(finished and words[-1:] == ["."]) - 0.02 * len(words)


for line in sys.stdin:
    asked = json.loads(line)
    rows = zip(asked["prompts"], asked["completions"], asked["finished"])
    print(json.dumps({"rewards": [reward(*row) for row in rows]}))
