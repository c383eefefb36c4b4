# Sourced by the recipes' run.sh: training and scoring, in stages that are not done twice. recipes/README.md tells the
# environment variables: DEVICES, and for several machines NODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.

# Slurm kills what is left when the shell is gone: it waits until the trainer, which gets the same signal, has saved.
trap 'exit 143' TERM

# torchrun kills ranks so many seconds after it told them to stop: ten less than Slurm leaves (slurm.sh).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-170}

# begin RECIPE [key=value ...]: which recipe this is, and what its user overrides.
begin() {
  recipe=$1
  run=runs/$recipe
  settings=("+recipe=$recipe")
  overrides=("${@:2}")
  scores=()
  local override
  for override in "${@:2}"; do
    case $override in run_dir=*) run=${override#run_dir=} ;; esac
  done
  IFS=_ read -r _ source target _ <<<"$recipe"
}

# local_files FOLDER TRAIN VALID TEST: these files of a folder, such as TRAIN.en and TRAIN.de, as the recipe's data.
local_files() {
  local split
  for split in "train=$2" "valid=$3" "test=$4"; do
    settings+=("data.${split%%=*}.source='$1/${split#*=}.$source'" "data.${split%%=*}.target='$1/${split#*=}.$target'")
  done
}

# train: clean, learn the vocabulary, encode, train, average; goes on where it stopped, on all devices and machines.
train() {
  local command=(seq2seq-train)
  if [ "${NODES:-1}" != 1 ]; then
    if [ -z "${NODE_RANK:-}" ] || [ -z "${MASTER_ADDR:-}" ]; then
      echo "NODES=$NODES: set NODE_RANK (0 on the first machine, 1 on the next) and MASTER_ADDR (the first's name)" >&2
      exit 2
    fi
    command=(torchrun "--nnodes=$NODES" "--node-rank=$NODE_RANK" "--nproc-per-node=${DEVICES:-1}"
      "--master-addr=$MASTER_ADDR" "--master-port=${MASTER_PORT:-29500}" -m seq2seq.cli.train)
  elif [ "${DEVICES:-1}" != 1 ]; then
    settings+=("trainer.devices=$DEVICES")
  fi
  "${command[@]}" "${settings[@]}" ${overrides[@]+"${overrides[@]}"}
  if [ "${NODES:-1}" != 1 ] && [ "$NODE_RANK" != 0 ]; then
    exit 0 # The first machine does the rest alone.
  fi
}

# score NAME [options of seq2seq-evaluate]: translate and score, unless RUN/scores/NAME.json is newer than the model.
score() {
  local result=$run/scores/$1.json
  scores+=("$1=$result")
  if [ "$result" -nt "$run/model/manifest.json" ]; then return; fi
  mkdir -p "$run/scores"
  echo "translating and scoring: $1" >&2
  seq2seq-evaluate --model "$run/model" "${@:2}" >"$result.partial"
  mv "$result.partial" "$result"
}

# table KEY=FIGURE: all scores in Markdown, beside the published figure of one kind, such as paper_bleu=27.3.
table() {
  PYTHONPATH=$(cd -P "$(dirname "${BASH_SOURCE[0]}")" && cd .. && pwd) \
    python3 -m tools.figures table "${scores[@]}" --published "$1"
}
