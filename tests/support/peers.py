"""Stand-ins for checkouts of other projects, with the parts of their interfaces that the benchmarks use."""

from pathlib import Path

# GPT-2 with the names of nanoGPT's weights.
NANOGPT_MODEL = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool
    dropout: float


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = Mlp(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab_size, config.n_embd),
            "wpe": nn.Embedding(config.block_size, config.n_embd),
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd, bias=config.bias),
        })

    def forward(self, tokens, targets=None):
        x = self.transformer.wte(tokens) + self.transformer.wpe.weight[: tokens.shape[1]]
        for block in self.transformer.h:
            x = block(x)
        logits = self.transformer.ln_f(x) @ self.transformer.wte.weight.T
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        groups = [
            {"params": [p for p in self.parameters() if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)

    def generate(self, tokens, max_new_tokens, top_k):
        assert top_k == 1
        for _ in range(max_new_tokens):
            tokens = torch.cat([tokens, self(tokens)[0][:, -1:].argmax(-1)], 1)
        return tokens
"""
NANOGPT_TRAIN = """
import sys
from pathlib import Path

assert Path("data/shakespeare_char/train.bin").exists() and "--device=cpu" in sys.argv
print("step 0: train loss 4.2, val loss 4.2\\nstep 2000: train loss 1.7, val loss 1.9")
"""
NANOGPT_PREPARE = """
from pathlib import Path

folder = Path(__file__).parent
(folder / "train.bin").write_bytes((folder / "input.txt").read_bytes())
"""
# A model of one layer, on the meta device until `init_weights`.
NANOCHAT_MODEL = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

COMPUTE_DTYPE = torch.float32


@dataclass
class GPTConfig:
    sequence_len: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int
    n_embd: int
    window_pattern: str


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size)

    def init_weights(self):
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.02)

    def setup_optimizer(self):
        return torch.optim.AdamW(self.parameters())

    def forward(self, tokens, targets):
        return F.cross_entropy(self.head(self.embedding(tokens)).flatten(0, 1), targets.flatten())
"""


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Write texts by their paths below `folder`, and return the folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def write_nanogpt(folder: Path) -> Path:
    prepare = "data/shakespeare_char/prepare.py"
    return write_files(folder, {"model.py": NANOGPT_MODEL, "train.py": NANOGPT_TRAIN, prepare: NANOGPT_PREPARE})


def write_nanochat(folder: Path) -> Path:
    return write_files(folder, {"nanochat/__init__.py": "", "nanochat/gpt.py": NANOCHAT_MODEL})
