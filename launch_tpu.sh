#!/usr/bin/env bash
# Runs a command on all hosts of a Cloud TPU slice, from this checkout, until it
# has finished.
#
#   TPU=my-tpu ZONE=us-east5-a TYPE=v5p-128 ./launch_tpu.sh \
#       python -m mmr1.main --config=configs/vision_r1.py:qwen2_5_vl_7b \
#       --workdir=gs://bucket/run
#
# Copies the checkout to ~/mmr1 of every worker, makes or reuses the virtual
# environment ~/mmr1-venv there, runs the command on all workers at once, and
# brings their logs to runs/logs/. `python` in the command is that of the
# environment. With TYPE a slice that is not there, or was preempted, is created,
# and the same command goes on from what the run has saved (so --fresh, which
# would start over each time, is refused); a run is over when --workdir has its
# marker FINISHED, whatever exit code its workers gave. A marker of an earlier
# run says nothing: there the exit code counts.
# Optional: PROJECT; VERSION, the runtime; SPOT=1; TRIES, how often a command is
# started (100).
set -euo pipefail
cd "$(dirname "$0")"

: "${TPU:?set TPU to the name of the TPU VM}"
: "${ZONE:?set ZONE to its zone}"
if (($# == 0)); then
  echo 'launch_tpu.sh: no command given; see the top of this file.' >&2
  exit 2
fi
workdir='' flag=''
for arg; do
  case $flag in --workdir | -workdir) workdir=$arg ;; esac
  case $arg in
    --workdir=* | -workdir=*) workdir=${arg#*=} ;;
    --fresh=false | --fresh=False | --fresh=0) ;;
    --fresh | -fresh | --fresh=* | -fresh=*)
      echo "launch_tpu.sh: got $arg: the command is started again after a" \
        'preemption, and would wipe what the run has saved each time. Leave' \
        'it out, and name a new --workdir or empty the old one.' >&2
      exit 2
      ;;
  esac
  flag=$arg
done
where=("--zone=$ZONE")
if [[ -n ${PROJECT:-} ]]; then
  where+=("--project=$PROJECT")
fi
tpu_vm() { gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
on_all() { tpu_vm ssh "$TPU" --worker=all --command="$1"; }
state() { tpu_vm describe "$TPU" --format='value(state)' 2> /dev/null || true; }

create() {
  case $TYPE in
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    *) image=tpu-ubuntu2204-base ;;
  esac
  tpu_vm create "$TPU" --accelerator-type="$TYPE" \
    --version="${VERSION:-$image}" ${SPOT:+--spot}
}

# Leaves a slice that is READY, or ends.
ready() {
  local now looks
  now=$(state)
  for ((looks = 0; looks < 180; looks++)); do # half an hour
    case $now in
      CREATING | STARTING | RESTARTING | REPAIRING | REIMAGING | STOPPING | \
        DELETING) ;;
      *) break ;;
    esac
    if ((looks == 0)); then echo "$TPU: $now; waiting"; fi
    sleep 10
    now=$(state)
  done
  if [[ $now == READY ]]; then return; fi
  if [[ -z ${TYPE:-} ]]; then
    echo "launch_tpu.sh: $TPU in $ZONE is ${now:-not there}. With TYPE, as in" \
      'TYPE=v5p-128, it is created.' >&2
    exit 2
  fi
  case $now in
    '') ;;
    PREEMPTED | TERMINATED | STOPPED | SUSPENDED)
      tpu_vm delete "$TPU" --quiet
      ;;
    *)
      echo "launch_tpu.sh: $TPU in $ZONE is $now, which is neither READY nor" \
        'gone. See to it, or delete it, and start again.' >&2
      exit 2
      ;;
  esac
  echo "$TPU: ${now:-not there}; creating $TYPE"
  create
}

# The checkout: what git knows or could know and is there, not what it ignores.
archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do
    if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi
  done |
  tar --null --files-from=- -czf "$archive/mmr1.tgz"

prepare() {
  workers=$(tpu_vm describe "$TPU" \
    --format='value(networkEndpoints[].ipAddress)' | tr ';,' '\n' |
    grep -c . || true)
  echo "$TPU: $workers worker(s)"
  tpu_vm scp "$archive/mmr1.tgz" "$TPU:mmr1.tgz" --worker=all
  # uv brings its own Python: TPU images may have an older one.
  on_all 'set -e
mkdir -p ~/mmr1 && tar -xzf ~/mmr1.tgz -C ~/mmr1
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
test -x ~/mmr1-venv/bin/python ||
  ~/.local/bin/uv venv --quiet --python 3.12 ~/mmr1-venv
~/.local/bin/uv pip install --quiet --python ~/mmr1-venv/bin/python \
  -r ~/mmr1/requirements.txt "jax[tpu]" "etils[epath-gcs]"'
}

printf -v command '%q ' "$@"
run() {
  on_all "set -o pipefail
cd ~/mmr1 && export PATH=~/mmr1-venv/bin:\$PATH
$( ((workers > 1)) && echo 'export MMR1_COORDINATOR=auto')
$command 2>&1 | tee -a ~/mmr1.log"
}

finished() {
  local path
  case $workdir in
    '') return 1 ;;
    gs://*) gcloud storage ls "$workdir/FINISHED" > /dev/null 2>&1 ;;
    *)
      printf -v path '%q' "$workdir"
      # A leading ~ is the worker's home, as it is to mmr1.
      if [[ $path == '\~'* ]]; then path=${path#?}; fi
      tpu_vm ssh "$TPU" --worker=0 \
        --command="cd ~/mmr1 && test -e $path/FINISHED"
      ;;
  esac
}

logs() {
  mkdir -p runs/logs
  for ((i = 0; i < workers; i++)); do
    tpu_vm scp "$TPU:mmr1.log" "runs/logs/$TPU-$i.log" --worker="$i" || true
  done
  echo "logs: runs/logs/$TPU-*.log"
}

earlier='' # whether the marker is there before the first run
for ((try = 1; try <= ${TRIES:-100}; try++)); do
  ready
  prepare
  if ((try == 1)) && finished; then earlier=1; fi
  status=0
  run || status=$?
  if finished && { [[ -z $earlier ]] || ((status == 0)); }; then
    status=0
    break
  fi
  if [[ $(state) == READY ]] && ((status > 0)) || [[ -z $workdir ]]; then
    break # the command itself failed, or nothing says whether it is over
  fi
  echo "$TPU: stopped before it was finished; going on"
done
logs
exit "$status"
