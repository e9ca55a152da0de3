"""The price of a European call by Monte Carlo, for ten strikes."""

import json
import math
import random
import sys
import time
from pathlib import Path

PATHS, SPOT, RATE, VOLATILITY = 5_000, 100.0, 0.03, 0.2


def main(folder: Path, seed: int, summed: str) -> None:
    """Write the prices. `summed` stands for how a machine adds: plainly, or with more bits in between."""
    add = math.fsum if summed == "wide" else sum
    started = time.monotonic()
    draws = random.Random(seed)
    ends = [SPOT * math.exp(RATE - VOLATILITY**2 / 2 + VOLATILITY * draws.gauss(0.0, 1.0)) for _ in range(PATHS)]
    lines = ["strike,price,error"]
    for strike in range(80, 130, 5):
        gains = [math.exp(-RATE) * max(0.0, end - strike) for end in ends]
        mean = add(gains) / PATHS
        error = math.sqrt(add([(gain - mean) ** 2 for gain in gains]) / (PATHS - 1) / PATHS)
        lines.append(f"{strike},{mean!r},{error!r}")
    (folder / "prices.csv").write_text("\n".join(lines) + "\n")
    (folder / "summary.json").write_text(
        json.dumps({"paths": PATHS, "seed": seed, "mean_end": add(ends) / PATHS}) + "\n"
    )
    (folder / "run.log").write_text(f"took {time.monotonic() - started:.3f} s\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "plain")
