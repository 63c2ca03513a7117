"""A computation that is always the same, run as a child: the noise of the machine is what its times vary by.

`python fixed.py SECONDS THREADS` finds how many matrix products take so long, says so in a line, and then
answers every line on standard input with the seconds that they took.
"""

from __future__ import annotations

import sys
import time

import torch

ROWS, INNER, OUT = 84, 512, 2048
"""A Linear of the encoder, for 5 s of audio."""
CALIBRATE_S = 1.0


def main() -> None:
    """Serve standard input until it ends."""
    wanted_s, threads = float(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    rows, weights = torch.randn(ROWS, INNER), torch.randn(INNER, OUT)

    def work(products: int) -> float:
        began = time.perf_counter()
        for _ in range(products):
            torch.mm(rows, weights)
        return time.perf_counter() - began

    work(100)
    done, spent = 0, 0.0
    while spent < CALIBRATE_S:
        spent += work(50)
        done += 50
    products = max(1, round(wanted_s * done / spent))
    print(products, flush=True)
    for _ in sys.stdin:
        print(work(products), flush=True)


if __name__ == "__main__":
    main()
