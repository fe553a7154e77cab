"""The benchmarks of ml_training.rs and ml_generation.rs in PyTorch and transformers on the CPU.

usage: ml_reference.py training|generation [THREADS]

Weights are bfloat16 numbers as those of the checkpoint, or others with WEIGHTS=f32, and are computed with in `float32`, or in
what DTYPE names. `models.py` runs both in turns.
"""
import os
import resource
import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

what = sys.argv[1]
torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, rope_theta=100000.0, rms_norm_eps=1e-5, max_position_embeddings=2048,
    tie_word_embeddings=True))
if os.environ.get("WEIGHTS") != "f32":
    model.to(torch.bfloat16)
model.to(getattr(torch, os.environ.get("DTYPE", "float32")))


class Lora(torch.nn.Module):
    def __init__(self, base, rank=16, alpha=32):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = torch.nn.Parameter(torch.randn(rank, base.in_features) / (3 * base.in_features) ** 0.5)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * torch.nn.functional.linear(torch.nn.functional.linear(x, self.a), self.b)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if what == "training":
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name.endswith("_proj"):
                setattr(module, name, Lora(child))
    variables = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(variables, lr=1e-4, weight_decay=0.0)
    ids = torch.randint(0, 49152, (2, 256))
    seconds = []
    before = time.process_time()
    for _ in range(8):
        start = time.perf_counter()
        loss = model(ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(variables, 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    print(f"LoRA training: {median:.3f} s and {(time.process_time() - before) / 8:.2f} processor seconds a step, {512 / median:.0f} tokens/s, peak {peak():.2f} GB")
else:
    model.eval()
    model.generation_config.top_k = 0
    for name, rows in (("greedy", 16), ("sampling", 16), ("greedy", 1)):
        prompts = torch.randint(1, 49152, (rows, 32))
        seconds = []
        before = time.process_time()
        for _ in range(3):
            start = time.perf_counter()
            out = model.generate(prompts, attention_mask=torch.ones_like(prompts), min_new_tokens=64,
                                 max_new_tokens=64, do_sample=name == "sampling", eos_token_id=None,
                                 pad_token_id=0)
            assert out.shape == (rows, 96)
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds)
        print(f"{name}, {rows} rows: {median:.3f} s and {(time.process_time() - before) / 3:.2f} processor seconds, {rows * 64 / median:.1f} tokens/s, peak {peak():.2f} GB")
