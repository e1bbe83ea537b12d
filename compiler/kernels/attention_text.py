"""The kernels of masked attention as text: one tile of queries against the keys they may see, and the other way round.

Words in capitals between `<` and `>` are filled in by compiler/kernels/attention.py."""

from __future__ import annotations

from specc.compiler.lower.ring import NEVER

TILE = '''
@triton.jit
def seen_tile(q_index, k_index, n_q, n_k<TILE_ATTRIBUTES>):
    """Which scores of a tile count: q_index is a column, k_index a row."""
    return (q_index < n_q) & (k_index < n_k) & <PREDICATE>
'''

SIGHT = '''
@triton.jit
def <OTHERS>_in_sight(first, last, batch, n_q, n_k<GIVEN>, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """Where the <OTHERS> begin and end that this tile of <OWNS> may see, by the bounds of attributes in tiles."""
    <OWN>_low = tl.program_id(0) * <OWN_BLOCK>
    <OWN>_high = tl.minimum(<OWN>_low + <OWN_BLOCK>, n_<OWN>) - 1
    <OWN>_index = tl.minimum(<OWN>_low + tl.arange(0, <OWN_BLOCK>), <OWN>_high)
    <OWN_BOUNDS>
    begin, end = tl.zeros([], tl.int32) + last, tl.zeros([], tl.int32) + first
    for start in range(first, last, 32 * <OTHER_BLOCK>):
        <OTHER>_low = start + tl.arange(0, 32) * <OTHER_BLOCK>
        <OTHER>_high = <OTHER>_low + <OTHER_BLOCK> - 1
        <OTHER>_index = tl.minimum(<OTHER>_low[:, None] + tl.arange(0, <OTHER_BLOCK>)[None, :], n_<OTHER> - 1)
        <OTHER_BOUNDS>
        may = (<OTHER>_low < last) & <MAY>
        begin = tl.minimum(begin, tl.min(tl.where(may, <OTHER>_low, last), axis=0))
        end = tl.maximum(end, tl.max(tl.where(may, <OTHER>_high + 1, first), axis=0))
    return begin, tl.minimum(end, last)
'''

FORWARD = '''
@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, <POINTERS>y_ptr, lse_ptr, n_q, n_k, heads, groups, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):
    """A tile of queries of one head, over all keys that it may see; softmax online (arXiv:2205.14135)."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    kv_heads, kv_head = heads // groups, head // groups
    q_index = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    e, f = tl.arange(0, BLOCK_E)[None, :], tl.arange(0, BLOCK_F)[None, :]
    q_row = (batch * n_q + q_index) * heads + head
    q = tl.load(q_ptr + q_row * <E> + e, mask=(q_index < n_q) & (e < <E>), other=0.0)
    <LOAD_Q><LOAD_FIRSTS>
    most = tl.full([BLOCK_Q, 1], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_Q, 1], dtype=tl.float32)
    y = tl.zeros([BLOCK_Q, BLOCK_F], dtype=tl.float32)<SEEK_KEYS>
    for start in range(<FIRST_KEY>, <LAST_KEY>, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)[:, None]
        k_index = start + tl.arange(0, BLOCK_K)[None, :]
        k_row = (batch * n_k + at) * kv_heads + kv_head
        k = tl.load(k_ptr + k_row * <E> + e, mask=(at < n_k) & (e < <E>), other=0.0)
        v = tl.load(v_ptr + k_row * <F> + f, mask=(at < n_k) & (f < <F>), other=0.0)
        <LOAD_K>
        seen = seen_tile(q_index, k_index, n_q, n_k<ARGUMENTS>)
        scores = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, axis=1, keep_dims=True))
        # A row that has seen nothing yet has no maximum to subtract.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp(scores - base)
        shrink = tl.exp(most - base)
        total = total * shrink + tl.sum(p, axis=1, keep_dims=True)
        y = y * shrink + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        most = higher
    whole = tl.where(total == 0.0, 1.0, total)
    tl.store(y_ptr + q_row * <F> + f, y / whole, mask=(q_index < n_q) & (f < <F>))
    # Of a query that sees nothing it is <UNSEEN>, so that no gradient is NaN.
    lse = tl.where(total == 0.0, <NO_LSE>, most + tl.log(whole))
    tl.store(lse_ptr + tl.program_id(1).to(tl.int64) * n_q + q_index, lse, mask=q_index < n_q)
'''

BACKWARD_KEYS = '''
@triton.jit
def backward_keys_kernel(
    q_ptr, k_ptr, v_ptr, <POINTERS>dy_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, n_q, n_k, heads, groups, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):
    """A tile of keys of one key-value head, over the queries of all heads that share it: no sums between programs."""
    kv_heads = heads // groups
    batch, kv_head = (tl.program_id(1) // kv_heads).to(tl.int64), tl.program_id(1) % kv_heads
    at = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)[:, None]
    k_index = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    e, f = tl.arange(0, BLOCK_E)[None, :], tl.arange(0, BLOCK_F)[None, :]
    k_row = (batch * n_k + at) * kv_heads + kv_head
    k = tl.load(k_ptr + k_row * <E> + e, mask=(at < n_k) & (e < <E>), other=0.0)
    v = tl.load(v_ptr + k_row * <F> + f, mask=(at < n_k) & (f < <F>), other=0.0)
    <LOAD_K><LOAD_FIRSTS>
    dk = tl.zeros([BLOCK_K, BLOCK_E], dtype=tl.float32)
    dv = tl.zeros([BLOCK_K, BLOCK_F], dtype=tl.float32)<SEEK_QUERIES>
    for group in range(0, groups):
        head = kv_head * groups + group
        for start in range(<FIRST_QUERY>, <LAST_QUERY>, BLOCK_Q):
            q_index = start + tl.arange(0, BLOCK_Q)[:, None]
            q_row = (batch * n_q + q_index) * heads + head
            q = tl.load(q_ptr + q_row * <E> + e, mask=(q_index < n_q) & (e < <E>), other=0.0)
            dy = tl.load(dy_ptr + q_row * <F> + f, mask=(q_index < n_q) & (f < <F>), other=0.0)
            of_row = (batch * heads + head) * n_q + q_index
            lse = tl.load(lse_ptr + of_row, mask=q_index < n_q, other=0.0)
            delta = tl.load(delta_ptr + of_row, mask=q_index < n_q, other=0.0)
            <LOAD_Q>
            seen = seen_tile(q_index, k_index, n_q, n_k<ARGUMENTS>)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            p = tl.where(seen, tl.exp(scores - lse), 0.0)
            dv += tl.dot(tl.trans(p).to(dy.dtype), dy, input_precision="ieee")
            ds = p * (tl.dot(dy, tl.trans(v), input_precision="ieee") - delta) * scale
            dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision="ieee")
    tl.store(dk_ptr + k_row * <E> + e, dk, mask=(at < n_k) & (e < <E>))
    tl.store(dv_ptr + k_row * <F> + f, dv, mask=(at < n_k) & (f < <F>))
'''

BACKWARD_QUERIES = '''
@triton.jit
def backward_queries_kernel(
    q_ptr, k_ptr, v_ptr, <POINTERS>dy_ptr, lse_ptr, delta_ptr, dq_ptr, n_q, n_k, heads, groups, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):
    """A tile of queries of one head, over all keys that it may see."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    kv_heads, kv_head = heads // groups, head // groups
    q_index = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)[:, None]
    e, f = tl.arange(0, BLOCK_E)[None, :], tl.arange(0, BLOCK_F)[None, :]
    q_row = (batch * n_q + q_index) * heads + head
    q = tl.load(q_ptr + q_row * <E> + e, mask=(q_index < n_q) & (e < <E>), other=0.0)
    dy = tl.load(dy_ptr + q_row * <F> + f, mask=(q_index < n_q) & (f < <F>), other=0.0)
    of_row = tl.program_id(1).to(tl.int64) * n_q + q_index
    lse = tl.load(lse_ptr + of_row, mask=q_index < n_q, other=0.0)
    delta = tl.load(delta_ptr + of_row, mask=q_index < n_q, other=0.0)
    <LOAD_Q><LOAD_FIRSTS>
    dq = tl.zeros([BLOCK_Q, BLOCK_E], dtype=tl.float32)<SEEK_KEYS>
    for start in range(<FIRST_KEY>, <LAST_KEY>, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)[:, None]
        k_index = start + tl.arange(0, BLOCK_K)[None, :]
        k_row = (batch * n_k + at) * kv_heads + kv_head
        k = tl.load(k_ptr + k_row * <E> + e, mask=(at < n_k) & (e < <E>), other=0.0)
        v = tl.load(v_ptr + k_row * <F> + f, mask=(at < n_k) & (f < <F>), other=0.0)
        <LOAD_K>
        seen = seen_tile(q_index, k_index, n_q, n_k<ARGUMENTS>)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        p = tl.where(seen, tl.exp(scores - lse), 0.0)
        ds = p * (tl.dot(dy, tl.trans(v), input_precision="ieee") - delta) * scale
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    tl.store(dq_ptr + q_row * <E> + e, dq, mask=(q_index < n_q) & (e < <E>))
'''

LAUNCHERS = '''
<CHECK>


def checked(q, k, v<NAMES>):
    """Operands as the kernels take them, and the sizes that they have."""
    (batch, n_q, heads, _), (_, n_k, kv_heads, _) = q.shape, k.shape
    assert heads % kv_heads == 0, f"{heads} heads do not share {kv_heads}"
    given = (
        check(q, (batch, n_q, heads, <E>), <DTYPE>),
        check(k, (batch, n_k, kv_heads, <E>), <DTYPE>),
        check(v, (batch, n_k, kv_heads, <F>), <DTYPE>),
        <CHECKS>
    )
    return given, (n_q, n_k, heads, heads // kv_heads)


def forward(q, k, v<NAMES>):
    config = CONFIGS["forward"][CHOSEN["forward"]]
    given, (n_q, n_k, heads, groups) = checked(q, k, v<NAMES>)
    y = torch.empty((q.shape[0], n_q, heads, <F>), dtype=<Y_DTYPE>, device=q.device)
    lse = torch.empty((q.shape[0], heads, n_q), dtype=torch.float32, device=q.device)
    forward_kernel[(-(-n_q // config[0]), q.shape[0] * heads)](
        *given, y, lse, n_q, n_k, heads, groups, SCALE, *config[:2],
        <BLOCK_E>, <BLOCK_F>, num_warps=config[2], enable_fp_fusion=False,
    )
    return y, lse


def backward(q, k, v<NAMES>, <KNOWN>):
    of_keys, of_queries = (CONFIGS[kind][CHOSEN[kind]] for kind in ("backward_keys", "backward_queries"))
    given, (n_q, n_k, heads, groups) = checked(q, k, v<NAMES>)
    <DELTA>
    dq, dk, dv = (torch.empty(x.shape, dtype=<D_DTYPE>, device=x.device) for x in given[:3])
    backward_keys_kernel[(-(-n_k // of_keys[1]), q.shape[0] * (heads // groups))](
        *given, dy, lse, delta, dk, dv, n_q, n_k, heads, groups, SCALE, *of_keys[:2],
        <BLOCK_E>, <BLOCK_F>, num_warps=of_keys[2], enable_fp_fusion=False,
    )
    backward_queries_kernel[(-(-n_q // of_queries[0]), q.shape[0] * heads)](
        *given, dy, lse, delta, dq, n_q, n_k, heads, groups, SCALE, *of_queries[:2],
        <BLOCK_E>, <BLOCK_F>, num_warps=of_queries[2], enable_fp_fusion=False,
    )
    return dq, dk, dv


def scores_of(q, k<NAMES>):
    """Scaled scores in fp32, and which of them count: [batch heads n_q n_k]."""
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    q_index = torch.arange(q.shape[1], device=q.device)[:, None]
    k_index = torch.arange(k.shape[1], device=k.device)[None, :]
    seen = torch.broadcast_to(<DENSE>, (q.shape[0], q.shape[1], k.shape[1]))[:, None]
    return torch.einsum("bqhe,bkhe->bhqk", q.float(), k.float()) * SCALE, seen


def forward_reference(q, k, v<NAMES>):
    scores, seen = scores_of(q, k<NAMES>)
    any_seen = seen.any(-1, keepdim=True)
    lse = torch.where(any_seen, torch.logsumexp(torch.where(seen, scores, float("-inf")), -1, keepdim=True), <NO_LSE>)
    p = torch.where(seen, (scores - lse).exp(), 0.0)
    y = torch.einsum("bhqk,bkhf->bqhf", p, v.repeat_interleave(q.shape[2] // v.shape[2], 2).float())
    return y.to(<Y_DTYPE>).contiguous(), lse.squeeze(-1).expand(q.shape[0], q.shape[2], q.shape[1]).contiguous()


def backward_reference(q, k, v<NAMES>, <KNOWN>):
    scores, seen = scores_of(q, k<NAMES>)
    p, groups = torch.where(seen, (scores - lse[..., None]).exp(), 0.0), q.shape[2] // k.shape[2]
    wide_k, wide_v = (x.repeat_interleave(groups, 2).float() for x in (k, v))
    dp = torch.einsum("bqhf,bkhf->bhqk", dy.float(), wide_v)
    ds = p * (dp - <DELTA_REFERENCE>[..., None]) * SCALE
    dk, dv = torch.einsum("bhqk,bqhe->bkhe", ds, q.float()), torch.einsum("bhqk,bqhf->bkhf", p, dy.float())
    dq = torch.einsum("bhqk,bkhe->bqhe", ds, wide_k)
    dk, dv = (x.unflatten(2, (-1, groups)).sum(3) for x in (dk, dv))
    return tuple(d.to(<D_DTYPE>).contiguous() for d, x in ((dq, q), (dk, k), (dv, v)))
'''

OPS = """
<RUNS_HERE>


@torch.library.custom_op("specc::<NAME>", mutates_args=())
def forward_op(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor<TYPED>
) -> tuple[torch.Tensor, torch.Tensor]:
    return (forward if runs_here(q) else forward_reference)(q, k, v<NAMES>)


@forward_op.register_fake
def forward_shapes(q, k, v<NAMES>):
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    return q.new_empty((*q.shape[:3], v.shape[3])<OF_DTYPE>), lse


@torch.library.custom_op("specc::<NAME>_backward", mutates_args=())
def backward_op(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor<TYPED>, <KNOWN_TYPED>
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (backward if runs_here(q) else backward_reference)(q, k, v<NAMES>, <KNOWN>)


@backward_op.register_fake
def backward_shapes(q, k, v<NAMES>, <KNOWN>):
    return q.new_empty(q.shape<OF_DTYPE>), k.new_empty(k.shape<OF_DTYPE>), v.new_empty(v.shape<OF_DTYPE>)
"""

AUTOGRAD = """
def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


def gradients(ctx, dy, dlse):
    *given, y, lse = ctx.saved_tensors
    return *torch.ops.specc.<NAME>_backward(*given, y, lse, dy.contiguous()), <NONES>


forward_op.register_autograd(gradients, setup_context=save)
"""

# What differs between attention of whole sequences and of a part of the queries to a part of the keys. The latter gives
# fp32, for others add to it, and its backward takes the log-sum-exp and the delta of whole rows.
WHOLE = {
    "UNSEEN": "0", "NO_LSE": "0.0", "Y_DTYPE": "q.dtype", "D_DTYPE": "x.dtype", "OF_DTYPE": "", "LOAD_FIRSTS": "",
    "KNOWN": "y, lse, dy", "KNOWN_TYPED": "y: torch.Tensor, lse: torch.Tensor, dy: torch.Tensor",
    "DELTA": """dy = check(dy, y.shape, y.dtype)
    # The softmax's gradient needs the sum of its own over each row: that of y times dy.
    delta = (y.float() * dy.float()).sum(-1).transpose(1, 2).contiguous()""",
    "DELTA_REFERENCE": "(y.float() * dy.float()).sum(-1).transpose(1, 2)",
}  # fmt: skip
PART = {
    "UNSEEN": "finite", "NO_LSE": str(NEVER), "Y_DTYPE": "torch.float32", "D_DTYPE": "torch.float32",
    "OF_DTYPE": ", dtype=torch.float32",
    "LOAD_FIRSTS": "\n    q_first, k_first = tl.load(q_first_ptr).to(tl.int32), tl.load(k_first_ptr).to(tl.int32)",
    "KNOWN": "dy, lse, delta", "KNOWN_TYPED": "dy: torch.Tensor, lse: torch.Tensor, delta: torch.Tensor",
    "DELTA": """dy = check(dy, (*q.shape[:3], <F>), <DTYPE>)
    lse, delta = (check(x, (q.shape[0], heads, n_q), torch.float32) for x in (lse, delta))""",
    "DELTA_REFERENCE": "delta",
}  # fmt: skip
