"""The engine against ninja, Snakemake and DVC: CPU seconds, on one machine, in one run.

    python3 -m venv peers && peers/bin/pip install ninja snakemake dvc
    PATH=$PWD/peers/bin:$PATH python3 benches/engine.py target/release/flowgraph 100 1000

Each tool gets N trivial stages, ten chains side by side: a stage copies what the one before it wrote and adds a line.
Wall-clock time says little on a busy machine, so user and system time of all processes are added up. A tool that is
not installed is left out; DVC, which takes most of a second a stage, is asked for no more than 100 of them.
"""
import os
import resource
import shutil
import subprocess
import sys
import tempfile
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


def main():
    program, sizes = os.path.abspath(sys.argv[1]), [int(size) for size in sys.argv[2:]] or [100, 1000]
    tools = {"flowgraph": (flowgraph, program)}
    for peer in (ninja, snakemake, dvc):
        found = shutil.which(peer.__name__)
        if found:
            tools[peer.__name__] = (peer, found)
    print("| tool | N | full run, ms a stage | run again, ms | plan, ms | peak of run again, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for size in sizes:
        for name, (make, path) in tools.items():
            if name == "dvc" and size > 100:
                continue
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                run, plan = make(size, path)
                full, _ = measure(run)
                again = [measure(run) for _ in range(3)]
                planned = [measure(plan) for _ in range(3)]
                os.chdir("/")
            quickest = min(seconds for seconds, _ in again)
            print(f"| {name} | {size:,} | {1000 * full / size:.1f} | {1000 * quickest:,.0f} | "
                  f"{1000 * min(seconds for seconds, _ in planned):,.0f} | {again[0][1]:.0f} |", flush=True)


main()
