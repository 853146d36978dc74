#!/usr/bin/env bash
# Checks that slt-run and PyTorch read each other's files and compute the same numbers.
#
#   scripts/check_with_torch.sh [CACHE]
#
# Makes a virtual environment with torch, numpy, pillow, tensorboard, sacrebleu, jiwer, tokenizers, timm and safetensors
# (about 4 GB) in CACHE, target/torch by default, and keeps it there; PYTHON=/path/to/python uses an interpreter that has
# them already. Trains small networks on a drawn dataset with all three optimizers, then:
#   1. loads every checkpoint strictly in PyTorch, weights and optimizer state, and steps the optimizer on;
#   2. compares every TensorBoard scalar with metrics.jsonl, through TensorBoard's own reader;
#   3. starts runs from checkpoints that PyTorch wrote, with and without extra keys such as numpy scalars, and checks
#      that a misfit is refused;
#   4. follows the README's Python from clips' files to logits, and compares each with slt-run's, as well as best.pt's loss;
#   5. has PyTorch make numeric cases from new seeds (SEEDS="100 200" by default) and repeats each, of both decoders;
#   6. trains the text decoder with all three optimizers, loads its checkpoints strictly, has sacrebleu and jiwer measure
#      what it predicts, and Python's tokenizers make the same tokens of all texts, for each kind of tokenizer;
#   7. has timm compute features with networks of its own, and compares those of backbones that begin with their weights,
#      as timm and DINO save them, at the networks' image size and at another; and PyTorch the learning rates of its
#      schedulers.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${1:-target/torch}
python=${PYTHON:-}
if [ -z "$python" ]; then
    python=$cache/bin/python
    if [ ! -x "$python" ]; then
        echo "== making $cache: torch, numpy, pillow, tensorboard, sacrebleu, jiwer, tokenizers, timm, safetensors"
        python3 -m venv "$cache"
        "$python" -m pip install --quiet torch numpy pillow tensorboard sacrebleu==2.6.0 jiwer==4.0.0 tokenizers timm safetensors
    fi
fi
"$python" -c 'import torch, numpy, PIL, tensorboard, sacrebleu, jiwer, tokenizers, timm, safetensors; print("PyTorch", torch.__version__)'

echo "== building"
cargo build --release
program=${CARGO_TARGET_DIR:-target}/release/slt-run
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$program" demo "$work/data" --clips 24 --frames 6 --size 32 --signs 3 --data-only --quiet
small=(--image-size 32 --sequence-length 4 --epochs 3 --quiet --set model.backbone.patch_size=8)

for optimizer in adamw adam sgd; do
    run=$work/$optimizer
    echo "== $optimizer: to PyTorch"
    "$program" "$work/data/demo.toml" "${small[@]}" --optimizer "$optimizer" --weight-decay 0.01 \
        --work-dir "$run" --tensorboard "$run/tensorboard"
    for name in last best; do
        "$python" scripts/torch_peer.py load "$run/$name.pt" --config "$run/config.json" --optimizer "$optimizer"
    done
    "$python" scripts/torch_interop.py step "$run"
    "$python" scripts/torch_interop.py events "$run"
done

echo "== from PyTorch"
"$python" scripts/torch_interop.py write "$work/adamw" "$work/torch"
for file in plain extra; do
    "$program" "$work/adamw/config.toml" --init-from "$work/torch/$file.pt" --epochs 1 --lr 0 --quiet \
        --work-dir "$work/from_$file" --tensorboard ""
    "$python" scripts/torch_interop.py same "$work/torch/$file.pt" "$work/from_$file/last.pt"
done
for file in class:collections.defaultdict sparse:torch._utils._rebuild_sparse_tensor; do
    message=$("$program" "$work/adamw/config.toml" --init-from "$work/torch/${file%%:*}.pt" --work-dir "$work/misfit" 2>&1) && code=0 || code=$?
    printf '%s\n' "$message"
    [ "$code" = 3 ] || { echo "a checkpoint with an unknown class ended with exit code $code, not 3"; exit 1; }
    case $message in *"${file#*:}"*) ;; *) echo "the message does not name ${file#*:}"; exit 1 ;; esac
done
set +e
message=$("$program" "$work/adamw/config.toml" --init-from "$work/torch/misfit.pt" --work-dir "$work/misfit" 2>&1)
code=$?
set -e
printf '%s\n' "$message"
[ "$code" = 3 ] || { echo "a checkpoint that does not fit ended with exit code $code, not 3"; exit 1; }
for words in "lacks parameters" "that the model lacks" "of another shape"; do
    case $message in *"$words"*) ;; *) echo "the message does not say: $words"; exit 1 ;; esac
done
[ ! -e "$work/misfit" ] || { echo "a refused run left $work/misfit"; exit 1; }

for kind in drawn blocks; do
    echo "== the README's Python, $kind images"
    "$program" demo "$work/$kind" --clips 24 --frames 9 --size 40 --signs 3 --data-only --quiet
    check=readme
    if [ "$kind" = blocks ]; then
        check=readme-on-blocks
        "$python" scripts/torch_interop.py blocks "$work/blocks"
    fi
    # Images are made smaller, and clips of 5 to 9 frames longer or shorter. Modulo 7, the order of the digest's bytes shows.
    "$program" "$work/$kind/demo.toml" --image-size 32 --sequence-length 6 --epochs 6 --lr 2e-3 --vocab-size 7 --quiet \
        --set model.backbone.patch_size=8 --work-dir "$work/run_$kind" --tensorboard ""
    "$python" scripts/torch_interop.py "$check" "$work/run_$kind" "$program"
done

texts=../shared/data/lsa_t_meta.csv
for seed in ${SEEDS:-100 200}; do
    echo "== numeric cases, seed $seed"
    "$python" scripts/torch_peer.py cases "$work/cases_$seed" --seed "$seed"
    NUMERIC_CASES=$work/cases_$seed cargo test --release cases
    "$python" scripts/torch_translation_peer.py cases "$work/cases_translation_$seed" --seed "$seed"
    NUMERIC_CASES=$work/cases_translation_$seed cargo test --release cases
    if [ -f "$texts" ]; then
        "$python" scripts/metrics_peer.py "$texts" "$work/figures_$seed.json" "$seed"
        METRIC_CASES=$work/figures_$seed.json cargo test --release --lib figures_are
    fi
done

echo "== the text decoder"
"$program" demo --translate "$work/sentences" --clips 120 --data-only --quiet
for optimizer in adamw adam sgd; do
    run=$work/translated_$optimizer
    "$program" "$work/sentences/demo.toml" --optimizer "$optimizer" --epochs 2 --work-dir "$run" --tensorboard "" --quiet
    "$python" scripts/torch_translation_peer.py load "$run/last.pt" --config "$run/config.json" --optimizer "$optimizer"
    "$program" evaluate "$run" --quiet > /dev/null
    "$python" scripts/torch_interop.py figures "$run/evaluation/val"
done
mkdir "$work/tokens"
TOKENS=$work/tokens cargo test --release --test suite tokens
"$python" scripts/torch_interop.py tokens "$work/tokens"

echo "== weights of timm and DINO"
"$python" scripts/torch_pretrained.py "$work/pretrained" --seed 1
PRETRAINED_CASES=$work/pretrained cargo test --release --test suite pretrained::features_are_timms
"$python" scripts/torch_pretrained.py "$work/pretrained_small" --small --seed 1
PRETRAINED_CASES=$work/pretrained_small cargo test --release --test suite pretrained::features_are_timms

for seed in ${SEEDS:-100 200}; do
    echo "== learning rates of schedulers, seed $seed"
    "$python" scripts/torch_schedules.py --seed "$seed" > "$work/schedules_$seed.json"
    SCHEDULE_CASES=$work/schedules_$seed.json cargo test --release --lib rates_of
done
echo "== all is well"
