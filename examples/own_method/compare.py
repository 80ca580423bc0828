"""The method beside the frozen client and SplitFed V2, at equal samples, in one process."""

from own_method.method import METHOD

from sfl_flower import compare

if __name__ == "__main__":
    found = compare(
        "digits",
        [METHOD],
        samples=16_000,
        seeds=1,
        out="runs/own_method",
        clients=5,
        eval_every=20,
    )
    for row in found.rows:
        print(f"{row.label:30} {row.mean:.4f}")
