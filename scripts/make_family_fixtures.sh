#!/usr/bin/env bash
# Makes tests/fixtures/families: tiny random checkpoints of public families as Hugging Face writes them, with the
# log-probabilities and the greedy ids it computes. Needs python3 with torch and transformers.
set -euo pipefail

cd "$(dirname "$0")/.."
make() {
    local family=$1 dtype=$2
    shift 2
    python3 scripts/peers/hf_checkpoint.py "$family" "tests/fixtures/families/$family" --dtype "$dtype" --seed 7 --length 24 \
        --set vocab_size=31 hidden_size=16 intermediate_size=20 num_hidden_layers=2 num_attention_heads=2 \
        max_position_embeddings=48 "$@"
}
make llama float32 num_key_value_heads=1 tie_word_embeddings=true
make mixtral float16 num_key_value_heads=1 num_local_experts=5
make olmoe bfloat16 num_key_value_heads=2 num_experts=5
make qwen3_moe float32 num_key_value_heads=1 num_experts=5 head_dim=10 moe_intermediate_size=12 decoder_sparse_step=2
