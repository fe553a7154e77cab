#!/usr/bin/env bash
# Measures on a machine with a GPU, which needs no network:
#   benches/gpu.sh PART FOLDER      PART: ours, reference, trainers or flowhf
#
# Each part ends within 8 minutes and goes on where it stopped when it is run again; `done` is its last word when nothing is
# left. All that was found is in FOLDER/gpu.json.
#
# Built before, elsewhere if need be, and named here: the ordinary program in FLOWGRAPH, that for GPUs in FLOWGRAPH_CUDA, the
# bench `gpu` in GPU_BENCH (cargo bench --features cuda --bench gpu --no-run), Python with torch and transformers in PYTHON.
# With GPU_BENCH_SMALL=1 all runs on the processor with tiny models: a trial.
set -euo pipefail
part=${1:?usage: benches/gpu.sh ours|reference|trainers|flowhf FOLDER}
out=${2:?usage: benches/gpu.sh PART FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out/items"
out=$(cd "$out" && pwd)
flowgraph=${FLOWGRAPH:-$here/target/release/flowgraph}
python=${PYTHON:-python3}
small=${GPU_BENCH_SMALL:-}
device=cuda
profile='--profile smollm2'
if [ -n "$small" ]; then
  device=cpu
  profile=
  export FLOWGRAPH_KERNELS=composed
fi
began=$SECONDS
left() { echo $((450 - (SECONDS - began))); }

collect() {
  "$python" - "$out" <<'PY'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
found = {}
for path in sorted((out / "items").glob("*.json")):
    found[path.stem] = json.loads(path.read_text())
for path in sorted((out / "items").glob("*.failed")):
    found[path.stem] = {"error": path.read_text()}
(out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
PY
}
trap collect EXIT

# One item: its name, then the command whose last line of output is its JSON.
item() {
  local name=$1
  shift
  [ -e "$out/items/$name.json" ] && return
  if [ "$(left)" -lt 30 ]; then
    echo "out of time before $name: run it again"
    exit 0
  fi
  echo "$name"
  if timeout "$(left)" "$@" > "$out/last" 2> "$out/errors"; then
    tail -n 1 "$out/last" > "$out/items/$name.json"
  else
    status=$?
    [ "$status" = 124 ] && { echo "out of time within $name: run it again"; exit 0; }
    tail -c 2000 "$out/errors" > "$out/items/$name.failed"
    echo "failed: $name ($out/items/$name.failed)"
    return
  fi
  rm -f "$out/items/$name.failed"
}

case $part in
ours)
  bench=${GPU_BENCH:?name the bench in GPU_BENCH}
  for name in $("$bench" list); do item "$name" "$bench" "$name"; done ;;
reference)
  for name in $("$python" "$here/benches/gpu_reference.py" list); do
    item "torch-$name" "$python" "$here/benches/gpu_reference.py" "$name"
  done ;;
trainers)
  # Every kind once on the device; then each result is computed again on the processor, and the differences are told.
  kinds=${KINDS:?name the folder that \`KINDS=FOLDER cargo test --release -- --ignored kinds_for_others\` filled in KINDS}
  item kinds "$flowgraph" run "$kinds/kinds.yaml" --store "$out/kinds" --device "$device" --json
  item trainers bash -c '"$1" audit "$2" --store "$3" --device cpu --json | tail -n 1 || [ $? = 5 ]' _ \
    "$flowgraph" "$kinds/kinds.yaml" "$out/kinds" ;;
flowhf)
  # FLOWHF has what else it is told: of the profile smollm2 the folders of data, such as `--set data.questions=...`.
  read -r -a told <<< "${FLOWHF:-}"
  start=$(date +%s)
  status=0
  timeout "$(left)" "$flowgraph" run "$here/pipelines/flowhf.yaml" $profile ${told[@]+"${told[@]}"} --device "$device" \
    --store "$out/flowhf" -q || status=$?
  [ "$status" = 124 ] && { echo "out of time: run it again"; exit 0; }
  [ "$status" = 0 ] || exit "$status"
  echo "{\"seconds_of_the_last_run\": $(($(date +%s) - start))}" > "$out/items/flowhf.json" ;;
*) echo "no part is called $part"; exit 2 ;;
esac
echo done
