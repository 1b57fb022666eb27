"""`make bench`: the figures of docs/performance.md, each as a ratio of two things measured side by side in one run.

python bench/run.py [startup] [throughput] [cache] [padding] [memory] [embedded] [classes] [decoding] [checkpoints]
                    [generation] [lora] [recovery] [faults] [tuning] [plan] [prediction] [isolation] [quickstart] [demo]
                    default: all

MODELS is the folder of the language model of `generation`, and SHARED the one whose data/ has the public data sets;
benches that need one are skipped if it is missing.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cache
import classes
import decoding
import decoding_rate
import embedded
import isolation
import lora_step
import memory
import padding
import planning
import prediction
import serving_faults
import surviving
import throughput
import tuning

ROOT = Path(__file__).parents[1]
RAYFUSE = Path(sys.executable).with_name("rayfuse")
STARTUP_LIMIT = 0.35
RENDER_LIMIT = 0.5
HELP_LIMIT = 0.1
RENDERED = [str(ROOT / "serve/digit_arithmetic.yaml"), "--cluster", str(ROOT / "k8s/cluster.yaml")]
QUICKSTART_LIMIT = 180.0
DEMO_LIMIT = 360.0


def startup() -> None:
    """Print the seconds of short commands compared with a bare interpreter; medians of 11 interleaved runs."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import rayfuse": [sys.executable, "-c", "import rayfuse"],
        "rayfuse --help": [str(RAYFUSE), "--help"],
        "rayfuse schema job": [str(RAYFUSE), "schema", "job"],
        "rayfuse submit --render": [str(RAYFUSE), "submit", *RENDERED, "--render"],
    }
    limits = {
        "import rayfuse": HELP_LIMIT,
        "rayfuse --help": HELP_LIMIT,
        "rayfuse submit --render": RENDER_LIMIT,
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(11):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    bare = statistics.median(seconds["python -c pass"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        limit = limits.get(name, STARTUP_LIMIT)
        print(f"startup     {name:<24} {middle:.3f} s   {middle / bare:4.1f} x python   limit {limit} s")


def quickstart() -> None:
    """Print the seconds from a csv file of 1000 rows to a prediction, by the code of docs/quickstart.md."""
    sys.path.append(str(ROOT / "tests"))
    from doc_pages import blocks

    page = ROOT / "docs" / "quickstart.md"
    make_rows, train, *_ = [block.code for block in blocks(page.read_text()) if "import" in block.code]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", make_rows], cwd=folder, check=True)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", train], cwd=folder, check=True, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    print(
        f"quickstart  {len(train.splitlines())} lines, {seconds:.1f} s from 1000 rows to a prediction   "
        f"{seconds / QUICKSTART_LIMIT:.2f} of the limit of {QUICKSTART_LIMIT:.0f} s"
    )


def demo() -> None:
    """Print the seconds of `rayfuse demo` by step, without set-up."""
    done = subprocess.run([str(RAYFUSE), "demo", "--json"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout.splitlines()[-1])
    for step, seconds in found["seconds"].items():
        print(f"demo        {step:<60} {seconds:6.1f} s")
    total = sum(found["seconds"].values())
    print(f"demo        all {total:.1f} s   {total / DEMO_LIMIT:.2f} of the limit of {DEMO_LIMIT:.0f} s")
    for inputs, metrics in found["by_inputs"].items():
        print(f"demo        accuracy on unseen rows given {inputs:<20} {metrics['answer/accuracy']:.4f}")


BENCHES = {
    "startup": startup,
    "throughput": throughput.run,
    "cache": cache.run,
    "padding": padding.run,
    "memory": memory.run,
    "embedded": embedded.run,
    "classes": classes.run,
    "decoding": decoding.run,
    "generation": decoding_rate.run_default,
    "lora": lora_step.run,
    "checkpoints": surviving.checkpoints,
    "recovery": surviving.recovery,
    "faults": serving_faults.run,
    "tuning": tuning.run,
    "plan": planning.run,
    "prediction": prediction.run,
    "isolation": isolation.run,
    "quickstart": quickstart,
    "demo": demo,
}


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(BENCHES)
    if unknown:
        sys.exit(f"{', '.join(unknown)}: no such bench; one of: {', '.join(BENCHES)}")
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()
