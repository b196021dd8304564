"""What `torch.nn.attention.varlen.varlen_attn` computes, in float64, in the forms that torch has had."""

import torch
from torch import Tensor


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """As in torch 2.12: softmax attention of each text, its queries at the end of its keys."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (int(cu_seq_q[0]), int(cu_seq_q[-1])) == (0, len(query))
    assert (int(cu_seq_k[0]), int(cu_seq_k[-1])) == (0, len(key)) == (0, len(value))
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    folds = query.shape[1] // key.shape[1]
    assert enable_gqa or folds == 1
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    outputs = []
    for (q0, q1), (k0, k1) in zip(cu_seq_q.unfold(0, 2, 1).tolist(), cu_seq_k.unfold(0, 2, 1).tolist(), strict=True):
        texts = query[q0:q1], key[k0:k1].repeat_interleave(folds, 1), value[k0:k1].repeat_interleave(folds, 1)
        q, k, v = (table.double().transpose(0, 1) for table in texts)
        distance = torch.arange(k1 - k0) - (torch.arange(q1 - q0) + (k1 - k0) - (q1 - q0))[:, None]
        left, right = (torch.inf if reach == -1 else reach for reach in window_size)
        hidden = (distance < -left) | (distance > right)
        scores = (q @ k.mT * scale).masked_fill(hidden, -torch.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs).to(query.dtype)


def varlen_attn_210(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    return_aux: None = None,
) -> Tensor:
    """As in torch 2.10: no scale, windows or shared heads."""
    lengths = cu_seq_q, cu_seq_k, max_q, max_k
    return varlen_attn(query, key, value, *lengths, window_size=(-1, 0) if is_causal else (-1, -1))
