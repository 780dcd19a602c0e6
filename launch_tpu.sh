#!/usr/bin/env bash
# Runs a command on a Cloud TPU VM, from this checkout.
#
#   TPU=my-tpu ZONE=us-east5-a ./launch_tpu.sh \
#       python -m mmr1.main --config=configs/vision_r1.py --workdir=gs://b/run
#
# Copies the checkout to ~/mmr1 of every worker, makes or reuses the virtual
# environment ~/mmr1-venv there, runs the command on all workers at once, and
# brings their logs back to runs/logs/. Called again, the same command resumes.
# `python` in the command is that of the environment. Optional: PROJECT.
#
# One worker is what this version supports (several chips on one host). A slice
# with more is refused unless MULTIHOST=1; see the README.
set -euo pipefail
cd "$(dirname "$0")"

: "${TPU:?set TPU to the name of the TPU VM}"
: "${ZONE:?set ZONE to its zone}"
if (($# == 0)); then
  echo 'launch_tpu.sh: no command given; see the top of this file.' >&2
  exit 2
fi
where=("--zone=$ZONE")
if [[ -n ${PROJECT:-} ]]; then
  where+=("--project=$PROJECT")
fi
tpu_vm() { gcloud compute tpus tpu-vm "$@" "${where[@]}"; }
on_all() { tpu_vm ssh "$TPU" --worker=all --command="$1"; }

workers=$(tpu_vm describe "$TPU" --format='value(networkEndpoints[].ipAddress)' |
  tr ';,' '\n' | grep -c . || true)
echo "$TPU: $workers worker(s)"
if ((workers == 0)); then
  echo "launch_tpu.sh: no address of $TPU in $ZONE was found; is it running?" >&2
  exit 2
fi
if ((workers > 1)) && [[ ${MULTIHOST:-} != 1 ]]; then
  echo "launch_tpu.sh: $TPU has $workers workers; this version of mmr1 is" \
    'tested on one host only. MULTIHOST=1 runs the command on all anyway.' >&2
  exit 2
fi

# The checkout: what git knows or could know and is there, not what it ignores.
archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do
    if [[ -e $file || -L $file ]]; then printf '%s\0' "$file"; fi
  done |
  tar --null --files-from=- -czf "$archive/mmr1.tgz"
tpu_vm scp "$archive/mmr1.tgz" "$TPU:mmr1.tgz" --worker=all
# uv brings its own Python: TPU images may have an older one.
on_all 'set -e
mkdir -p ~/mmr1 && tar -xzf ~/mmr1.tgz -C ~/mmr1
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
test -x ~/mmr1-venv/bin/python ||
  ~/.local/bin/uv venv --quiet --python 3.12 ~/mmr1-venv
~/.local/bin/uv pip install --quiet --python ~/mmr1-venv/bin/python \
  -r ~/mmr1/requirements.txt "jax[tpu]" "etils[epath-gcs]"'

printf -v command '%q ' "$@"
status=0
on_all "set -o pipefail
cd ~/mmr1 && export PATH=~/mmr1-venv/bin:\$PATH
$command 2>&1 | tee ~/mmr1.log" || status=$?

mkdir -p runs/logs
for ((i = 0; i < workers; i++)); do
  tpu_vm scp "$TPU:mmr1.log" "runs/logs/$TPU-$i.log" --worker="$i"
done
echo "logs: runs/logs/$TPU-*.log"
exit "$status"
