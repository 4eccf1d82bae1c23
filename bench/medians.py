"""Prints the median of each criterion bench as a table: of one run, or of several runs with their range.

Usage: medians.py [DIR...], each a criterion directory of one run; default: target/criterion.
"""

import json
import os
import pathlib
import statistics
import sys


def medians(run):
    """Name, bytes and elements a time stands for, and median in ns, of every bench below `run`."""
    for path in sorted(run.glob("**/new/benchmark.json")):
        bench = json.loads(path.read_text())
        estimates = json.loads(path.with_name("estimates.json").read_text())
        yield bench["full_id"], bench["throughput"] or {}, estimates["median"]["point_estimate"]


def scaled(nanoseconds):
    for unit, factor in (("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= factor:
            return f"{nanoseconds / factor:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


def rate(throughput, nanoseconds):
    if "Bytes" in throughput:
        return f"{throughput['Bytes'] / nanoseconds:.3g} GB/s"
    if throughput.get("Elements", 1) > 1:
        return f"{nanoseconds / throughput['Elements']:.3g} ns a record"
    return ""


def main():
    default = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "criterion"
    runs = [pathlib.Path(name) for name in sys.argv[1:]] or [default]
    found = {}
    for run in runs:
        for name, throughput, median in medians(run):
            found.setdefault(name, (throughput, []))[1].append(median)
    print("| bench | median | lowest – highest run | |\n|---|---|---|---|")
    for name, (throughput, times) in found.items():
        median = statistics.median(times)
        span = f"{scaled(min(times))} – {scaled(max(times))}"
        print(f"| {name} | {scaled(median)} | {span} | {rate(throughput, median)} |")


main()
