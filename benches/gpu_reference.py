"""The training and generation of gpu.rs in PyTorch and transformers, bf16 with scaled dot-product attention.

usage: gpu_reference.py list | ITEM        (ITEM as `gpu list` names them; one line of JSON)
"""
import json
import os
import statistics
import sys
import time

SHAPES = ["smollm2", "7b"]
ITEMS = [f"training-{s}-lora" for s in SHAPES] + [f"training-{s}-lora-checkpointing" for s in SHAPES]
ITEMS += [f"generation-{s}-sampling-{n}" for s in SHAPES for n in (1, 16, 64)]
ITEMS += ["training-smollm2-full"]
if sys.argv[1] == "list":
    print("\n".join(ITEMS))
    sys.exit()

import torch
from transformers import LlamaConfig, LlamaForCausalLM

item = sys.argv[1].split("-")
small = "GPU_BENCH_SMALL" in os.environ
device = "cpu" if small else "cuda"
torch.manual_seed(0)
config = dict(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, rope_theta=100000.0, rms_norm_eps=1e-5, max_position_embeddings=2048, tie_word_embeddings=True)
rows, tokens = 32, 512
if item[1] == "7b":
    config.update(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                  num_attention_heads=32, num_key_value_heads=32, rope_theta=10000.0, tie_word_embeddings=False)
    rows = 4
if small:
    config.update(vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2)
    rows, tokens = 2, 16
full = item[-1] == "full"
dtype = torch.float32 if full else torch.bfloat16
with torch.device(device):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    model = LlamaForCausalLM._from_config(LlamaConfig(**config), attn_implementation="sdpa")
    torch.set_default_dtype(before)


class Lora(torch.nn.Module):
    def __init__(self, base, rank=16, alpha=32):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = torch.nn.Parameter(torch.randn(rank, base.in_features, device=device) / (3 * base.in_features) ** 0.5)
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank, device=device))
        self.scale = alpha / rank

    def forward(self, x):
        wide = torch.nn.functional.linear(torch.nn.functional.linear(x.float(), self.a), self.b)
        return self.base(x) + (self.scale * wide).to(x.dtype)


def wait():
    if device == "cuda":
        torch.cuda.synchronize()


def median(seconds):
    return statistics.median(seconds[1:])


if item[0] == "training":
    if not full:
        model.requires_grad_(False)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if name.endswith("_proj"):
                    setattr(module, name, Lora(child))
    if item[-1] == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    variables = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(variables, lr=1e-4, weight_decay=0.0)
    ids = torch.randint(0, config["vocab_size"], (rows, tokens), device=device)
    seconds = []
    for _ in range(6):
        wait()
        start = time.perf_counter()
        loss = model(ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(variables, 1.0)
        optimizer.step()
        wait()
        seconds.append(time.perf_counter() - start)
    done = rows * tokens
else:
    rows = int(item[-1])
    read, new = (8, 8) if small else (128, 128)
    model.eval()
    model.generation_config.top_k = 0
    prompts = torch.randint(1, config["vocab_size"], (rows, read), device=device)
    seconds = []
    for _ in range(4):
        wait()
        start = time.perf_counter()
        out = model.generate(prompts, attention_mask=torch.ones_like(prompts), min_new_tokens=new, max_new_tokens=new,
                             do_sample=True, eos_token_id=None, pad_token_id=0)
        wait()
        assert out.shape == (rows, read + new)
        seconds.append(time.perf_counter() - start)
    done = rows * new
seconds = median(seconds)
peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
print(json.dumps({"seconds": seconds, "tokens_per_second": done / seconds, "rows": rows, "peak_bytes": peak,
                  "torch": torch.__version__}))
