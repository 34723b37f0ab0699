"""Times PyTorch's own attention and a chunked linear recurrence with one decay per head, for comparison with the
criterion benches `attention` (8 heads of 64) and `lightning` (4 heads of 64), batch 1, single precision.

    python benches/peers/torch_kernels.py
"""

import math
import statistics
import time

import torch
import torch.nn.functional as F

CHUNK = 64


def clock(work, seconds=2.0):
    work()
    samples, start = [], time.perf_counter()
    while len(samples) < 5 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        work()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def decayed(q, k, v, log_a):
    """H_t = exp(log_a_t) H_{t-1} + k_t v_tᵀ, y_t = H_tᵀ q_t in chunks, with the states as one product over chunks."""
    b, h, t, n = q.shape
    c = t // CHUNK
    q, k, v = (x.view(b, h, c, CHUNK, n) for x in (q, k, v))
    g = log_a.view(b, h, c, CHUNK).cumsum(-1)
    mask = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    between = (g[..., :, None] - g[..., None, :]).masked_fill(~mask, -math.inf).exp()
    local = (k * (g[..., -1:] - g).exp()[..., None]).transpose(-1, -2) @ v
    total, state, before = g[..., -1].exp(), torch.zeros(b, h, n, n), []
    for i in range(c):
        before.append(state)
        state = state * total[:, :, i, None, None] + local[:, :, i]
    inter = (q * g.exp()[..., None]) @ torch.stack(before, 2)
    return ((q @ k.transpose(-1, -2) * between) @ v + inter).view(b, h, t, n)


def measure(name, heads, lengths, function, inputs):
    for t in lengths:
        tensors = inputs(heads, t)
        forward = clock(lambda: function(*tensors))
        leaves = [x.requires_grad_() for x in tensors]
        both = clock(lambda: function(*leaves).sum().backward())
        print(f"{name:<10} {t:>6} tokens  forward {1e3 * forward:8.2f} ms  with gradients {1e3 * both:8.2f} ms", flush=True)


def heads_of(h, t):
    return [torch.randn(1, h, t, 64) for _ in range(3)]


def main():
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    print(f"product of 1024 x 1024: {2 * 1024**3 / clock(lambda: a @ b) / 1e9:.0f} GFLOP/s")
    attention = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    measure("attention", 8, [512, 2048, 8192], attention, heads_of)
    measure("lightning", 4, [512, 8192, 65536], decayed, lambda h, t: [*heads_of(h, t), -0.1 * torch.rand(1, h, t)])


if __name__ == "__main__":
    main()
