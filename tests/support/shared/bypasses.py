"""Shared by tests of several folders."""

from __future__ import annotations

import numpy as np
from support.plan_files import Bypass


def halves(gap: int, n_embd: int, n_blocks: int = 1) -> list[Bypass]:
    """Two bypasses that halve the stream without rounding: a = 0.5, and x + U(Vx) with UV = -0.5 I."""
    eye = np.eye(n_embd, dtype=np.float32)
    return [
        Bypass(gap, n_blocks, a=np.full(n_embd, 0.5, np.float32)),
        Bypass(gap, n_blocks, u=-0.5 * eye, v=eye),
    ]
