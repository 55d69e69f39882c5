"""Gradient of the loss at the last word of a caption with respect to every state before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.decoding.search import State, Step
from captioner.models.attention import AttentionDecoder


def gradient_norms(step: Step, state: State, context: State, words: Tensor, lengths: Tensor) -> list[Tensor]:
    """‖∂L_T / ∂h_{T−d}‖ for d = 1 … D, where L_T = −log p(w_T | w_1 … w_{T−1}) is the loss of the last word alone.

    h_t is the state after START and w_1 … w_{t−1}. L_T depends on h_T, d states after h_{T−d}, and by the chain rule
    ``∂L_T/∂h_{T−d} = J_{T−d+1}ᵀ … J_Tᵀ ∂L_T/∂h_T`` with ``J_k = ∂h_k/∂h_{k−1}``. In a tanh RNN
    ``J_k = diag(1 − h_k²) W_hh`` and 0 < 1 − h² ≤ 1: where the largest singular value σ of W_hh is below 1 the
    gradient vanishes at least as fast as σ^d, and only where σ > 1 can it explode (Pascanu, Mikolov and Bengio 2013,
    section 2.1). From c_{k−1} to c_k in an LSTM the Jacobian is diag(f_k), the forget gate, and no matrix (Hochreiter
    and Schmidhuber 1997; Gers et al. 2000).

    Args:
        step, state, context: of N captions, as for a search.
        words: (N, T + 1) ids: START, w_1 … w_T, then anything.
        lengths: (N,) the T of each caption, 1 or more.

    Returns:
        For each part of the state (h; h and c of an LSTM, or of two), (N, D) norms over all layers, where the other
        parts of that state are held fixed. D is the smallest T; the last column of the shortest caption is that of
        the state before START.
    """
    state = tuple(part.detach().requires_grad_() for part in state)
    states, losses = [], []
    for t in range(int(lengths.max())):
        state = tuple(part.view_as(part) for part in state)  # of one step, h does not depend on c
        states.append(state)
        log_probs, state = step(words[:, t], state, context)  # (N, V)
        losses.append(-log_probs.gather(1, words[:, t + 1 : t + 2])[:, 0])
    rows = torch.arange(len(words))
    loss = torch.stack(losses)[lengths - 1, rows].sum()  # the captions do not depend on each other
    times = lengths.unsqueeze(1) - torch.arange(1, int(lengths.min()) + 1)  # (N, D): T − d
    norms = []
    for parts in zip(*states, strict=True):
        gradients = torch.autograd.grad(loss, parts, retain_graph=True, materialize_grads=True)
        by_time = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])  # (max T, N)
        norms.append(by_time[times, rows.unsqueeze(1)])
    return norms


def recurrent_matrices(decoder: nn.Module) -> dict[str, Tensor]:
    """W_hh of each layer by name: (H, H), in a GRU (3H, H) and in an LSTM (4H, H) for all gates.

    They share the memory of the weights. With attention they are the columns of an LSTM's own h_{t−1} in its gates,
    without those of the attended cells, of the other LSTM, and of the sentinel's gate.
    """
    if isinstance(decoder, AttentionDecoder):
        h, first = decoder.hidden_size, decoder.recurrent.weight.detach()  # (4H or 5H, E + H, H or 2H)
        if decoder.kind == "updown":
            return {"recurrent": first[:, :h], "language": decoder.language.weight.detach()[:, -h:]}
        return {"recurrent": first[: 4 * h, -h:]}
    return {name: weight.detach() for name, weight in decoder.named_parameters() if "weight_hh" in name}


def largest_singular_value(decoder: nn.Module) -> float:
    """Of the W_hh of all layers and gates."""
    gates = [gate for weight in recurrent_matrices(decoder).values() for gate in weight.split(weight.shape[1])]
    return max(float(torch.linalg.matrix_norm(gate.float(), 2)) for gate in gates)
