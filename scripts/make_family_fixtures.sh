#!/usr/bin/env bash
# Makes tests/fixtures/families: tiny random checkpoints of public families as Hugging Face writes them, with the
# log-probabilities and the greedy ids it computes. Needs python3 with torch and transformers.
#
#   scripts/make_family_fixtures.sh [NAME...]     all of them, or those named
set -euo pipefail

cd "$(dirname "$0")/.."
wanted=("$@")

# make NAME FAMILY DTYPE [OPTION...] -- KEY=VALUE...
make() {
    local name=$1 family=$2 dtype=$3 options=()
    shift 3
    if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    python3 scripts/peers/hf_checkpoint.py "$family" "tests/fixtures/families/$name" --dtype "$dtype" --seed 7 --length 24 \
        ${options[@]+"${options[@]}"} --set vocab_size=31 "$@"
}
llama=(hidden_size=16 intermediate_size=20 num_hidden_layers=2 num_attention_heads=2 max_position_embeddings=48)
gpt=(n_embd=16 n_layer=2 n_head=2 n_positions=48)
make llama llama float32 -- "${llama[@]}" num_key_value_heads=1 tie_word_embeddings=true
make mixtral mixtral float16 -- "${llama[@]}" num_key_value_heads=1 num_local_experts=5
make olmoe olmoe bfloat16 -- "${llama[@]}" num_key_value_heads=2 num_experts=5
make qwen3_moe qwen3_moe float32 -- "${llama[@]}" num_key_value_heads=1 num_experts=5 head_dim=10 \
    moe_intermediate_size=12 decoder_sparse_step=2
make gpt2 gpt2 float32 -- "${gpt[@]}"
make gpt2-bare gpt2 float16 --shard 5KB --bare -- "${gpt[@]}" n_inner=20 activation_function=gelu tie_word_embeddings=false
make openai-gpt openai-gpt float32 -- "${gpt[@]}"
