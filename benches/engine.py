"""The engine against ninja, Snakemake, DVC and b3sum: CPU seconds, on one machine, in one run.

    python3 -m venv peers && peers/bin/pip install ninja snakemake dvc
    cargo install b3sum --root peers
    PATH=$PWD/peers/bin:$PATH python3 benches/engine.py target/release/flowgraph

Each tool gets N trivial stages, ten chains side by side: a stage copies what the one before it wrote and adds a line.
Wall-clock time says little on a busy machine, so user and system time of all processes are added up. Then each that
keeps digests of its inputs is given a file of 2 GB, for the first time and again. A tool that is not installed is left
out; DVC, which takes most of a second a stage, is asked for no more than 100 of them, Snakemake for no more than 1,000.
"""
import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(i):
    return f"echo {i} > {{out}}" if i < 10 else f"cat {{before}} > {{out}}; echo {i} >> {{out}}"


def flowgraph(n, program):
    lines = ["name: many", "stages:"]
    for i in range(n):
        inputs = f"inputs: {{ x: s{i - 10} }}, " if i >= 10 else ""
        run = command(i).format(out="out", before="$x")
        lines.append(f'  s{i}: {{ kind: command, {inputs}params: {{ run: "{run}", outputs: {{ out: out }} }} }}')
    Path("p.yaml").write_text("\n".join(lines) + "\n")
    return [program, "run", "p.yaml", "--quiet"], [program, "plan", "p.yaml", "--quiet"]


def ninja(n, program):
    lines = ["rule sh", "  command = $cmd"]
    for i in range(n):
        before = f"f{i - 10}" if i >= 10 else ""
        lines += [f"build f{i}: sh {before}", f"  cmd = {command(i).format(out=f'f{i}', before=before)}"]
    Path("build.ninja").write_text("\n".join(lines) + "\n")
    return [program, "--quiet"], [program, "-n", "--quiet"]


def snakemake(n, program):
    lines = ["rule all:", f"    input: [f'f{{i}}' for i in range({max(0, n - 10)}, {n})]"]
    for i in range(n):
        before = f"f{i - 10}" if i >= 10 else ""
        lines += [f"rule s{i}:"] + ([f"    input: '{before}'"] if before else [])
        lines += [f"    output: 'f{i}'", f"    shell: '{command(i).format(out=f'f{i}', before=before)}'"]
    Path("Snakefile").write_text("\n".join(lines) + "\n")
    run = [program, "--cores", "2", "--quiet", "all"]
    return run, run[:1] + ["--dry-run"] + run[1:]


def dvc(n, program):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([program, "init", "--no-scm", "--quiet"], check=True, **quiet)
    lines = ["stages:"]
    for i in range(n):
        before = f"f{i - 10}" if i >= 10 else ""
        lines += [f"  s{i}:", f"    cmd: {command(i).format(out=f'f{i}', before=before)}"]
        lines += [f"    deps: [{before}]"] if before else []
        lines += [f"    outs: [f{i}]"]
    Path("dvc.yaml").write_text("\n".join(lines) + "\n")
    return [program, "repro", "--quiet"], [program, "status", "--quiet"]


def measure(arguments):
    """Runs a command; returns CPU seconds of all its processes, and the peak memory of the largest in MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{arguments} failed: {errors.decode()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, usage.ru_maxrss / 1000


def best(arguments, times=3):
    """The least CPU milliseconds and the greatest memory of a few runs."""
    runs = [measure(arguments) for _ in range(times)]
    return 1000 * min(seconds for seconds, _ in runs), max(memory for _, memory in runs)


def stages(program, sizes):
    tools = {"flowgraph": (flowgraph, program)}
    for peer in (ninja, snakemake, dvc):
        found = shutil.which(peer.__name__)
        if found:
            tools[peer.__name__] = (peer, found)
    most = {"snakemake": 1000, "dvc": 100}
    print("| tool | N | full run, ms a stage | run again, ms | plan, ms | memory of these, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for size in sizes:
        for name, (make, path) in tools.items():
            if size > most.get(name, size):
                continue
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                run, plan = make(size, path)
                full, _ = measure(run)
                (again, memory), (planned, more) = best(run), best(plan)
                os.chdir("/")
            # Whatever is deleted makes the next tool's new files slow for a while on ext4.
            time.sleep(30 if size > 100 else 0)
            print(f"| {name} | {size:,} | {1000 * full / size:.1f} | {again:,.0f} | {planned:,.0f} | "
                  f"{max(memory, more):.0f} |", flush=True)


def forgetful(plan):
    """CPU milliseconds of a plan in a store that knows no file outside yet."""
    shutil.rmtree(".flowgraph/stat", ignore_errors=True)
    return 1000 * measure(plan)[0]


def large_input(program):
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with open("data.csv", "wb") as file:
            for _ in range(2000):
                file.write(os.urandom(1_000_000))
        Path("p.yaml").write_text("name: large\nstages:\n  data: { kind: load_preferences, "
                                  "params: { source: data.csv, layout: stack_exchange_paired } }\n")
        Path(".flowgraph").mkdir()
        plan = [program, "plan", "p.yaml", "--quiet"]
        idle, _ = best([program, "--version"])
        first = min(forgetful(plan) for _ in range(3))
        print("\n| 2 GB input | first check, ms | unchanged, ms |\n| --- | ---: | ---: |")
        print(f"| flowgraph | {first:,.0f} | {best(plan)[0]:.1f}, of which {idle:.1f} are the program's start |")
        if shutil.which("b3sum"):
            b3sum = best(["b3sum", "data.csv"])[0]
            print(f"| b3sum | {b3sum:,.0f} | {b3sum:,.0f} |")
        if shutil.which("dvc"):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True, **quiet)
            first = 1000 * measure(["dvc", "add", "--quiet", "data.csv"])[0]
            print(f"| dvc | {first:,.0f} | {best(['dvc', 'status', '--quiet'])[0]:,.0f} |")
        os.chdir("/")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=os.path.abspath, help="the flowgraph to measure")
    parser.add_argument("sizes", type=int, nargs="*", default=[100, 1000, 10000], help="numbers of stages")
    options = parser.parse_args()
    stages(options.program, options.sizes)
    large_input(options.program)


main()
