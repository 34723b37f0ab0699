"""Measures one layer or kernel of PyTorch, transformers or flash-linear-attention, or a small model of transformers.

Run by `seqzoo-bench` with a job as JSON in its first argument; prints the outcome as one line of JSON. The layers have
the width, heads and memory of the architecture they stand beside, and do the same: projections, core, output map.
"""

import contextlib
import copy
import inspect
import json
import math
import os
import sys
import threading
import time

import torch
import torch.nn.functional as F
from torch import nn

HEADS = 4
CHUNK = 64
# Tokens decoded before a model's cache goes back to where the prompt left it.
DECODED = 16


class NotOffered(Exception):
    pass


def linear(d, out):
    return nn.Linear(d, out, bias=False)


def heads(x):
    b, t, _ = x.shape
    return x.view(b, t, HEADS, -1).transpose(1, 2)


def merge(y):
    return y.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Rotary positions and scaled_dot_product_attention; the cache grows by concatenation."""

    def __init__(self, d, n):
        super().__init__()
        self.q, self.k, self.v, self.o = (linear(d, d) for _ in range(4))
        n = d // HEADS
        self.register_buffer("rate", 10_000.0 ** (-torch.arange(0, n, 2).float() / n))

    def rotate(self, x, start):
        angle = torch.arange(start, start + x.shape[2], device=x.device).float()[:, None] * self.rate
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat([-high, low], -1) * sin

    def forward(self, x, state=None):
        start = 0 if state is None else state[0].shape[2]
        q = self.rotate(heads(self.q(x)), start)
        k, v = self.rotate(heads(self.k(x)), start), heads(self.v(x))
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=state is None)
        return self.o(merge(y)), (k, v)


def chunks(x):
    """[b, h, t, n] -> [b, h, t / CHUNK, CHUNK, n], padded with zeros."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % CHUNK))
    return x.unflatten(2, (-1, CHUNK))


class LinearAttention(nn.Module):
    """elu + 1, divided by the sum of the scores; chunks in parallel."""

    def __init__(self, d, n):
        super().__init__()
        self.n = n
        self.q, self.k, self.v = (linear(d, HEADS * n) for _ in range(3))
        self.o = linear(HEADS * n, d)

    def forward(self, x, state=None):
        q, k = (F.elu(heads(m(x))) + 1 for m in (self.q, self.k))
        v = heads(self.v(x))
        q, v = q * self.n**-0.5, torch.cat([v, torch.ones_like(v[..., :1])], -1)
        t = x.shape[1]
        memory = q.new_zeros(*q.shape[:2], self.n, self.n + 1) if state is None else state
        if t == 1:
            memory = memory + k.transpose(2, 3) * v
            y = q @ memory
        else:
            k = F.pad(k, (0, 0, 0, -t % CHUNK)) if t % CHUNK else k
            q, k, v = chunks(q), k.unflatten(2, (-1, CHUNK)), chunks(v)
            written = (k.transpose(3, 4) @ v).cumsum(2) + memory[:, :, None]
            before = torch.cat([memory[:, :, None], written[:, :, :-1]], 2)
            y = q @ before + (q @ k.transpose(3, 4)).tril() @ v
            y, memory = y.flatten(2, 3)[:, :, :t], written[:, :, -1]
        return self.o(merge(y[..., :-1] / (y[..., -1:] + 1e-6))), memory


class Gla(nn.Module):
    """Gated linear attention (arXiv 2312.06635): decay per key channel, chunks one after the other."""

    def __init__(self, d, n):
        super().__init__()
        self.n = n
        self.q, self.k, self.v, self.gate = (linear(d, HEADS * n) for _ in range(4))
        self.low, self.decay = linear(d, 16), nn.Linear(16, HEADS * n)
        self.norm, self.o = nn.RMSNorm(n), linear(HEADS * n, d)

    def forward(self, x, state=None):
        q, k, v = heads(self.q(x)) * self.n**-0.5, heads(self.k(x)), heads(self.v(x))
        log = F.logsigmoid(heads(self.decay(self.low(x)))) / 16
        memory = q.new_zeros(*q.shape[:2], self.n, self.n) if state is None else state
        t, out = x.shape[1], []
        if t == 1:
            memory = memory * log.exp().transpose(2, 3) + k.transpose(2, 3) * v
            y = q @ memory
        else:
            q, k, v, log = chunks(q), chunks(k), chunks(v), chunks(log).cumsum(3)
            past, future = q * log.exp(), k * (-log).exp()
            inside = (past @ future.transpose(3, 4)).tril() @ v
            last = log[:, :, :, -1:]
            write = (k * (last - log).exp()).transpose(3, 4) @ v
            for i in range(q.shape[2]):
                out.append(past[:, :, i] @ memory + inside[:, :, i])
                memory = memory * last[:, :, i].exp().transpose(2, 3) + write[:, :, i]
            y = torch.cat(out, 2)[:, :, :t]
        return self.o(merge(self.norm(y)) * F.silu(self.gate(x))), memory


class GatedDeltaNet(nn.Module):
    """Gated DeltaNet (arXiv 2412.06464): a triangular solve per chunk, chunks one after the other."""

    def __init__(self, d, n):
        super().__init__()
        self.n = n
        self.q, self.k, self.v, self.gate = (linear(d, HEADS * n) for _ in range(4))
        self.conv = nn.Conv1d(3 * HEADS * n, 3 * HEADS * n, 4, groups=3 * HEADS * n, bias=False)
        self.a, self.b = linear(d, HEADS), linear(d, HEADS)
        self.a_log, self.dt_bias = nn.Parameter(torch.zeros(HEADS)), nn.Parameter(torch.full((HEADS,), -4.6))
        self.norm, self.o = nn.RMSNorm(n), linear(HEADS * n, d)

    def forward(self, x, state=None):
        qkv = torch.cat([self.q(x), self.k(x), self.v(x)], -1).transpose(1, 2)
        tail = qkv.new_zeros(*qkv.shape[:2], 3) if state is None else state[1]
        qkv = torch.cat([tail, qkv], -1)
        tail = qkv[..., -3:]
        q, k, v = (heads(y) for y in F.silu(self.conv(qkv)).transpose(1, 2).chunk(3, -1))
        q, k = F.normalize(q, dim=-1) * self.n**-0.5, F.normalize(k, dim=-1)
        beta = self.b(x).sigmoid().transpose(1, 2)[..., None]
        log = (-self.a_log.exp() * F.softplus(self.a(x) + self.dt_bias)).transpose(1, 2)[..., None]
        memory = q.new_zeros(*q.shape[:2], self.n, self.n) if state is None else state[0]
        t, out = x.shape[1], []
        if t == 1:
            memory = memory * log.exp()
            memory = memory + k.transpose(2, 3) * (beta * (v - k @ memory))
            y = q @ memory
        else:
            q, k, v, beta, log = chunks(q), chunks(k), chunks(v), chunks(beta), chunks(log).cumsum(3)
            decay = (log - log.transpose(3, 4)).tril().exp().tril()
            system = ((beta * k) @ k.transpose(3, 4) * decay).tril(-1)
            right = torch.cat([beta * v, beta * k * log.exp()], -1)
            solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
            new, old = solved.split([self.n, self.n], -1)
            scores = (q @ k.transpose(3, 4)) * decay
            last = log[:, :, :, -1:]
            past, keys = q * log.exp(), (k * (last - log).exp()).transpose(3, 4)
            for i in range(q.shape[2]):
                value = new[:, :, i] - old[:, :, i] @ memory
                out.append(past[:, :, i] @ memory + scores[:, :, i] @ value)
                memory = memory * last[:, :, i].exp() + keys[:, :, i] @ value
            y = torch.cat(out, 2)[:, :, :t]
        return self.o(merge(self.norm(y)) * F.silu(self.gate(x))), (memory, tail)


class Lstm(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        self.lstm = nn.LSTM(d, d, batch_first=True)

    def forward(self, x, state=None):
        return self.lstm(x, state)


class Mamba2(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        config = Mamba2Config(
            hidden_size=d, num_heads=HEADS, head_dim=n, state_size=n, expand=max(1, HEADS * n // d), n_groups=1, chunk_size=CHUNK
        )
        self.mixer = Mamba2Mixer(config, layer_idx=0)

    def forward(self, x, state=None):
        return self.mixer(x), ()


class FlaGatedDeltaNet(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        if not torch.cuda.is_available():
            raise NotOffered("flash-linear-attention's kernels need a GPU")
        from fla.layers import GatedDeltaNet as Layer

        self.layer = Layer(hidden_size=d, head_dim=n, num_heads=HEADS, expand_v=1)

    def forward(self, x, state=None):
        return self.layer(x)[0], ()


class Model(nn.Module):
    """A causal language model of transformers by its config.json, with its own cache; reads tokens."""

    def __init__(self, config):
        super().__init__()
        from transformers import AutoConfig, AutoModelForCausalLM

        config = dict(config)
        self.vocab = config["vocab_size"]
        self.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).eval()
        # The newest name first: older ones warn at every call.
        known = inspect.signature(self.model.forward).parameters
        self.cache = next(name for name in self.CACHES if name in known)

    CACHES = ("cache", "past_key_values", "cache_params", "state")

    def forward(self, tokens, state=None):
        output = self.model(input_ids=tokens, use_cache=True, **({} if state is None else {self.cache: state}))
        return output.logits, next(output[name] for name in self.CACHES if output.get(name) is not None)


def recurrence(q, k, v, log, a=None, b=None, *, chunk):
    """H_t = (diag(exp(log_t)) + b_t a_tᵀ) H_{t-1} + k_t v_tᵀ, y_t = H_tᵀ q_t: all chunks at once, then their states one after the
    other. The decays are one number or one per channel."""
    t = q.shape[2]
    q, k, v, log, *ab = (F.pad(x, (0, 0, 0, -t % chunk)).unflatten(2, (-1, chunk)) for x in (q, k, v, log, a, b) if x is not None)
    since = log.cumsum(3)
    last = since[:, :, :, -1:]
    past, future, kept = q * since.exp(), (-since).exp(), (last - since).exp()
    y = (past @ (k * future).transpose(3, 4)).tril() @ v
    write = (k * kept).transpose(3, 4) @ v
    decay, memory, before = last.exp().transpose(3, 4).unbind(2), torch.zeros_like(write[:, :, 0]), []
    if not ab:
        for d, w in zip(decay, write.unbind(2)):
            before.append(memory)
            memory = memory * d + w
        return (y + past @ torch.stack(before, 2)).flatten(2, 3)[:, :, :t]
    a, b = ab
    reads = a * (since - log).exp()
    system = -(reads @ (b * future).transpose(3, 4)).tril(-1)
    right = torch.cat([reads, (reads @ (k * future).transpose(3, 4)).tril(-1) @ v], -1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    old, new = (x.unbind(2) for x in solved.split([q.shape[-1], v.shape[-1]], -1))
    values = []
    for d, w, back, o, n in zip(decay, write.unbind(2), (b * kept).transpose(3, 4).unbind(2), old, new):
        before.append(memory)
        values.append(o @ memory + n)
        memory = memory * d + back @ values[-1] + w
    scores = (past @ (b * future).transpose(3, 4)).tril()
    return (y + past @ torch.stack(before, 2) + scores @ torch.stack(values, 2)).flatten(2, 3)[:, :, :t]


def scan(log, u, *, chunk):
    """h_t = exp(log_t) h_{t-1} + u_t: all chunks at once, then their states one after the other."""
    t = u.shape[2]
    log, u = (F.pad(x, (0, 0, 0, -t % chunk)).unflatten(2, (-1, chunk)) for x in (log, u))
    since = log.cumsum(3)
    decay = since.exp()
    inside = decay * (u * (-since).exp()).cumsum(3)
    state, before = torch.zeros_like(u[:, :, 0, :1]), []
    for d, w in zip(decay[:, :, :, -1:].unbind(2), inside[:, :, :, -1:].unbind(2)):
        before.append(state)
        state = state * d + w
    return (inside + decay * torch.stack(before, 2)).flatten(2, 3)[:, :, :t]


def convolution(x, weight, *, chunk):
    x = F.pad(x[:, 0].transpose(1, 2), (weight.shape[3] - 1, 0))
    return F.silu(F.conv1d(x, weight[0].transpose(0, 1), groups=weight.shape[2])).transpose(1, 2)


def attention(q, k, v, *, chunk):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Kernel(nn.Module):
    """A kernel without a layer around it, 8 heads of 64 or 512 channels; what it reads is drawn once."""

    # Of inputs per token and head their numbers, where the decays are, and the function.
    KINDS = {
        "attention": ([64] * 3, None, attention),
        "scalar": ([64, 64, 64, 1], 3, recurrence),
        "diagonal": ([64] * 4, 3, recurrence),
        "delta": ([64, 64, 64, 1, 64, 64], 3, recurrence),
        "delta_diagonal": ([64] * 6, 3, recurrence),
        "scan": ([64] * 2, 0, scan),
        "conv": ([], None, convolution),
    }

    def __init__(self, name, batch, time, train, device):
        super().__init__()
        widths, decays, self.function = self.KINDS[name]
        scale = 1.0 if name == "attention" else 0.1
        shapes = [(batch, 8, time, n) for n in widths] or [(batch, 1, time, 512), (1, 1, 512, 4)]
        self.inputs = [torch.randn(shape, device=device) * scale for shape in shapes]
        if decays is not None:
            self.inputs[decays] = -self.inputs[decays].abs().clamp(max=0.1)
        self.inputs = [x.requires_grad_(train) for x in self.inputs]
        # The fastest of three lengths; what does not work in chunks has one.
        self.chunk = 64
        if self.function in (recurrence, scan):
            self.chunk = min((32, 64, 128), key=self.seconds)

    def seconds(self, chunk):
        self.chunk = chunk
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            y, _ = self(None)
            if y.requires_grad:
                y.backward(torch.ones_like(y))
            times.append(time.perf_counter() - begin)
        return min(times)

    def forward(self, _, state=None):
        for x in self.inputs:
            x.grad = None
        return self.function(*self.inputs, chunk=self.chunk), ()


LAYERS = {
    "torch/attention": Attention,
    "torch/linear_attention": LinearAttention,
    "torch/gla": Gla,
    "torch/gated_deltanet": GatedDeltaNet,
    "torch/lstm": Lstm,
    "transformers/mamba2_layer": Mamba2,
    "fla/gated_deltanet": FlaGatedDeltaNet,
}


def state_bytes(state):
    """Bytes of a layer's state; 0 for a model's cache, which is a class of its own."""
    if torch.is_tensor(state):
        return state.numel() * state.element_size()
    return sum(state_bytes(part) for part in state) if isinstance(state, (tuple, list)) else 0


def measure(job):
    point, effort = job["point"], job["effort"]
    device = {"flex": "cpu", "ndarray": "cpu", "cuda": "cuda"}.get(point["device"])
    if device is None:
        raise NotOffered(f"PyTorch has no device like `{point['device']}`")
    d, b, t, task = job["sizes"]["d_model"], point["batch"], point["time"], point["task"]
    n = round(math.sqrt(job["sizes"]["state"] / HEADS))
    torch.manual_seed(0)
    kernel = point["subject"].partition("/kernel/")[2]
    if kernel:
        with contextlib.nullcontext() if task == "train" else torch.inference_mode():
            layer, x = Kernel(kernel, b, t, task == "train", device), None
    elif job.get("model"):
        layer = Model(job["model"]).to(device)
        x = (torch.arange(b * t) % layer.vocab).view(b, t).to(device)
    else:
        layer = LAYERS[point["subject"]](d, n).to(device)
        x = torch.sin(torch.arange(b * t * d, dtype=torch.float64) * 0.7391).float().view(b, t, d).to(device)
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    state, start, decoded = None, None, 0

    def rewind():
        """Models write into their cache: each step goes on where the last one ended, and now and then back."""
        nonlocal state
        if start is not None and decoded % DECODED == 0:
            state = copy.deepcopy(start)

    def repeat():
        nonlocal state, decoded
        if task == "train":
            layer.zero_grad()
            y, after = layer(x)
            y.backward(torch.ones_like(y)) if kernel else (y * y).mean().backward()
        else:
            y, after = layer(x[:, :1], state) if task == "decode" else layer(x)
        if start is not None:
            state, decoded = after, decoded + 1
        sync()
        return after

    with contextlib.nullcontext() if task == "train" else torch.inference_mode():
        started = time.perf_counter()
        if task == "decode":
            state = layer(x)[1]
        if job.get("model"):
            start = copy.deepcopy(state)
        repeat()
        first = time.perf_counter() - started
        rewind()
        after = repeat()
        seconds, started = [], time.perf_counter()
        while len(seconds) < effort["most"] and (
            len(seconds) < effort["least"] or time.perf_counter() - started < effort["seconds"]
        ):
            rewind()
            begin = time.perf_counter()
            repeat()
            seconds.append(time.perf_counter() - begin)
    counted = {
        "flops": 0.0,
        "bytes": 0.0,
        "params": sum(p.numel() for p in layer.parameters()),
        "state_bytes": state_bytes(after),
        "allocated_bytes": 0,
    }
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {"kind": "done", "first_seconds": first, "seconds": seconds, "peak_bytes": peak, "counted": counted}


def limit_memory(size):
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    except (ImportError, ValueError, OSError) as error:
        print(f"no memory limit: {error}", file=sys.stderr)


def stop_with_parent():
    sys.stdin.read()
    os._exit(3)


def main():
    job = json.loads(sys.argv[1])
    threading.Thread(target=stop_with_parent, daemon=True).start()
    limit_memory(job["memory"])
    try:
        outcome = measure(job)
    except NotOffered as error:
        outcome = {"kind": "failed", "reason": str(error)}
    except MemoryError:
        outcome = {"kind": "out_of_memory", "limit": job["memory"]}
    except Exception as error:  # noqa: BLE001: whatever a library raises is a result
        if "not enough memory" in str(error) or "out of memory" in str(error):
            outcome = {"kind": "out_of_memory", "limit": job["memory"]}
        else:
            outcome = {"kind": "failed", "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
    print(json.dumps(outcome), flush=True)
    # The thread that waits for the parent must not hold the end up.
    os._exit(0)


if __name__ == "__main__":
    main()
