"""A verifier in Python: a derivation such as `2 * 3 = 6 ; 6 * 3 = 18` is right if each step holds and the last one comes
to where the column `chosen`, a right answer, comes to. Of a derivation that goes on each step that holds counts."""

import json
import operator
import sys

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def value(text):
    """The result of the last step, or None if a step does not hold."""
    result = None
    for step in text.split(";"):
        match step.split():
            case [a, sign, b, "=", result] if (a + b + result).isdigit() and sign in SIGNS:
                if SIGNS[sign](int(a), int(b)) != int(result):
                    return None
            case _:
                return None
    return result


for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("prefixes"):
        steps = [text.split(";")[:-1] for text in asked["completions"]]
        rewards = [0.25 * sum(value(step) is not None for step in steps) for steps in steps]
    else:
        pairs = zip(asked["completions"], asked["columns"]["chosen"])
        rewards = [float(value(text) is not None and value(text) == value(key)) for text, key in pairs]
    print(json.dumps({"rewards": rewards}))
