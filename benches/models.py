"""A LoRA step and generation at the shape of SmolLM2-135M beside PyTorch and transformers, in turns.

usage: models.py PYTHON [--rounds N]

PYTHON is an interpreter that has torch and transformers. Each line of the tables is the median of N rounds (3) of both
programs, one after the other, with the ratio of their medians; the other processor is kept busy for the last of them.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
# What PyTorch takes its instructions from: its own loops, MKL and oneDNN.
AVX2 = {"FLOWGRAPH_SIMD": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def build(name):
    """Returns the program of a bench."""
    command = ["cargo", "bench", "--no-run", "--bench", name, "--message-format", "json"]
    out = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == name][-1]


def run(command, environment):
    """Returns the lines of a program by their labels: seconds (or tokens a second) and gigabytes."""
    # As the workers of stages set it: candle's own threads spin for each other.
    environment = {**os.environ, "CANDLE_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    found = {}
    for line in out.splitlines():
        label, _, rest = line.partition(": ")
        speed, memory = re.search(r"([\d.]+) tokens/s", rest), re.search(r"peak ([\d.]+) GB", rest)
        if speed and memory:
            seconds = float(rest.split()[0])
            found[label] = (seconds, float(speed[1]), float(memory[1]))
    return found


def turns(rounds, ours, theirs):
    """Runs both in turns; returns the medians of each label of ours, and those of theirs."""
    both = ([], [])
    for _ in range(rounds):
        for results, (command, environment) in zip(both, (ours, theirs)):
            results.append(run(command, environment))
    medians = []
    for results in both:
        medians.append({label: [statistics.median(r[label][i] for r in results) for i in range(3)] for label in results[0]})
    return medians


def main():
    arguments = argparse.ArgumentParser(usage=__doc__)
    arguments.add_argument("python")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments = arguments.parse_args()
    training, generation = build("ml_training"), build("ml_generation")
    reference = [arguments.python, str(HERE / "ml_reference.py")]
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)[1]
    wide = "avx512f" in cpu
    print(f"{model}, {os.cpu_count()} processors, {'AVX-512' if wide else 'AVX2'}, load {os.getloadavg()[0]:.1f} at the start, {arguments.rounds} rounds\n")
    print("| LoRA step | flowgraph, s | PyTorch, s | ratio | flowgraph, GB | PyTorch, GB |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, held in [("AVX-512", {}), ("AVX2", AVX2)] if wide else [("AVX2", {})]:
        for threads in ("1", "2"):
            ours = ([training], {**held, "RAYON_NUM_THREADS": threads})
            theirs = (reference + ["training", threads], {**held, "OMP_NUM_THREADS": threads})
            a, b = (found["LoRA training"] for found in turns(arguments.rounds, ours, theirs))
            print(f"| {name}, {threads} thread{'s'[:int(threads) - 1]} | {a[0]:.2f} | {b[0]:.2f} | {b[0] / a[0]:.2f} | {a[2]:.2f} | {b[2]:.2f} |", flush=True)
    print("\n| generation, 2 threads | flowgraph, tokens/s | transformers, tokens/s | ratio | flowgraph, GB | transformers, GB |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for weights, dtype in (("bfloat16", "float32"), ("bfloat16", "bfloat16"), ("f32", "float32")):
        ours = ([generation], {"WEIGHTS": weights})
        a, b = turns(arguments.rounds, ours, (reference + ["generation", "2"], {"WEIGHTS": weights, "DTYPE": dtype}))
        for label in b:
            print(f"| {label}, weights {weights}, transformers in {dtype} | {a[label][1]:.1f} | {b[label][1]:.1f} | {a[label][1] / b[label][1]:.2f} | {a[label][2]:.2f} | {b[label][2]:.2f} |", flush=True)
    print("\n| LoRA step beside a busy process | s |\n| --- | ---: |")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        results = {threads: [] for threads in ("1", "2")}
        for _ in range(arguments.rounds):
            for threads, seconds in results.items():
                seconds.append(run([training], {"RAYON_NUM_THREADS": threads})["LoRA training"][0])
    finally:
        busy.kill()
    for threads, seconds in results.items():
        print(f"| {threads} thread{'s'[:int(threads) - 1]} | {statistics.median(seconds):.2f} |")


if __name__ == "__main__":
    main()
