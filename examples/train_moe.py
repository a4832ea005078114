"""Trains a mixture of experts on the Python standard library's sources, in low precision.

    python examples/train_moe.py --recipe bf16 int8
    python examples/train_moe.py --compare --seeds 3 --out moe-out

The model is that of `train_lm.py` with 8 experts in place of every MLP, two of them for each token
(`lm_experts.py`). All options are those of `train_lm.py`.
"""

import sys

import train_lm

EXPERTS = 8


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    return train_lm.main(["--experts", str(EXPERTS), *given])


if __name__ == "__main__":
    sys.exit(main())
