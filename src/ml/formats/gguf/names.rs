//! Names of tensors, as in `gguf-py/gguf/tensor_mapping.py` of llama.cpp.

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT: &str = "output.weight";
/// What the frequencies of Llama 3.1 and later are divided by.
pub(super) const FREQUENCY_DIVISORS: &str = "rope_freqs.weight";

/// Translates a Hugging Face name.
pub(in super::super) fn stored_name(name: &str) -> String {
    let Some((module, part)) = name.rsplit_once('.') else {
        return name.to_owned();
    };
    let stored = match module {
        "model.embed_tokens" | "transformer.wte" => "token_embd",
        "transformer.wpe" => "position_embd",
        "model.norm" | "transformer.ln_f" => "output_norm",
        "lm_head" => "output",
        _ => {
            let layer = module
                .strip_prefix("model.layers.")
                .or_else(|| module.strip_prefix("transformer.h."));
            return match layer.and_then(|rest| rest.split_once('.')) {
                Some((layer, module)) => format!("blk.{layer}.{}.{part}", within_block(module)),
                None => name.to_owned(),
            };
        }
    };
    format!("{stored}.{part}")
}

fn within_block(module: &str) -> &str {
    match module {
        "input_layernorm" | "ln_1" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "attn.c_attn" => "attn_qkv",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.o_proj" | "attn.c_proj" => "attn_output",
        "post_attention_layernorm" | "ln_2" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.c_fc" => "ffn_up",
        "mlp.down_proj" | "mlp.c_proj" => "ffn_down",
        other => other,
    }
}
