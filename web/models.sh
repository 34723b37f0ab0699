#!/bin/sh
# Trains the models that ship with the demo and writes them to web/site/public/models.
# Needs `cargo build --release --workspace --features seqzoo-layers/ndarray,seqzoo-bench/wgpu --bins --examples`;
# SEQZOO and SHIP name the programs where the target directory is elsewhere, RUNS where the runs are kept.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}/release
SEQZOO=${SEQZOO:-$target/seqzoo}
SHIP=${SHIP:-$target/examples/ship}
RUNS=${RUNS:-runs/web}
mkdir -p "$RUNS"

# The mixers, at sizes that suit a small picture: by name and task.
mixer() {
  case $1 in
    attention-*) echo '{"arch": "attention", "heads": 2}' ;;
    linear_attention-*) echo '{"arch": "linear_attention", "heads": 2}' ;;
    gated_deltanet-*) echo '{"arch": "gated_deltanet", "heads": 2, "head_dim": 16, "dt_max": 0.01}' ;;
    mamba2-mqar) echo '{"arch": "mamba2", "expand": 2.0, "head_dim": 16, "state": 32}' ;;
    mamba2-text) echo '{"arch": "mamba2", "expand": 1.0, "head_dim": 16, "state": 16}' ;;
    rglru-*) echo '{"arch": "rglru", "heads": 2}' ;;
    moh-*) echo '{"arch": "moh", "attention": {"heads": 4}, "routing": {"shared": 1, "top_k": 1}}' ;;
    titans-*) echo '{"arch": "titans", "heads": 2, "head_dim": 16, "memory": "linear"}' ;;
    yaad-*) echo '{"arch": "yaad", "heads": 2, "head_dim": 16, "memory": "linear"}' ;;
  esac
}

# A model of one mixer: name and task, vocabulary, width, depth, and how wide its MLP is (default: 8/3 of the width). A
# short convolution before the mixer lets every architecture tell a token's neighbours apart.
config() {
  hidden=${5:-$(( ($3 * 8 / 3 + 7) / 8 * 8 ))}
  cat <<JSON
{ "vocab": $2, "d_model": $3, "depth": $4, "embed_scale": $(awk "BEGIN { print sqrt($3) }"), "tied": true,
  "pattern": [{ "mixer": $(mixer "$1"),
                "conv": { "kernel": 4, "bias": false, "activation": "identity" },
                "mlp": { "kind": "dense", "hidden": $hidden, "activation": "silu", "gated": true } }] }
JSON
}

# Eight pairs among 31 keys and 32 values, asked for in 48 tokens.
recall() {
  dir=$RUNS/mqar-$1
  [ -e "$dir/checkpoint/train.json" ] && return
  config "$1-mqar" 64 32 1 > "$RUNS/mqar-$1.json"
  "$SEQZOO" train --config "$RUNS/mqar-$1.json" --task mqar --vocab 64 --pairs 8 --time 48 \
    --batch 16 --lr "$2" --steps "$3" --eval-every 200 --save-every 0 --out "$dir"
}

# The sources of this project, byte by byte.
text() {
  dir=$RUNS/text-$1
  [ -e "$dir/checkpoint/train.json" ] && return
  config "$1-text" 256 32 1 > "$RUNS/text-$1.json"
  "$SEQZOO" train --config "$RUNS/text-$1.json" --time 96 \
    --batch 16 --lr "$2" --steps "$3" --eval-every 200 --save-every 0 --out "$dir"
}

# Random letters, a mark, and the letters again.
copying() {
  dir=$RUNS/copy-$1
  [ -e "$dir/checkpoint/train.json" ] && return
  config "$1-copy" 256 32 1 32 > "$RUNS/copy-$1.json"
  "$SEQZOO" train --config "$RUNS/copy-$1.json" --text "$RUNS/copying.txt" --time 64 \
    --batch 16 --lr "$2" --steps "$3" --eval-every 200 --save-every 0 --out "$dir"
}

recall_models='attention linear_attention gated_deltanet mamba2 rglru moh titans'
text_models='attention linear_attention gated_deltanet mamba2 rglru moh yaad'
copying_models='attention gated_deltanet linear_attention'
for arch in $recall_models; do
  case $arch in
    # What decays learns to hold on only after a long plateau.
    mamba2) recall "$arch" 0.005 3000 ;;
    *) recall "$arch" 0.01 800 ;;
  esac
done
for arch in $text_models; do text "$arch" 0.01 800; done
"$SHIP" copying "$RUNS/copying.txt"
for arch in $copying_models; do copying "$arch" 0.01 2000; done
names() { for arch in $2; do echo "$1-$arch"; done; }
"$SHIP" web/site/public/models "$RUNS" $(names mqar "$recall_models") $(names text "$text_models") \
  $(names copy "$copying_models")
