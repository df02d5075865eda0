"""Training steps a second, ours beside SAELens's, dictionary-learning's and the floor.

    python -m tests.benchmarks.dictionaries --out benchmark.json [--d-in 1152 --expansion 32 ...]
    python -m tests.benchmarks.dictionaries --device cuda --out gpu.json  # at the sizes for a GPU

Contenders take turns, one step each, on the same batches with the same hyper-parameters, in one
process; the table gives the median seconds per step. The floor is what no exact implementation can
avoid: one encoder product and one fused Adam step. Memory is the peak of a process of its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from diffsae_lens.dictionaries import (
    BatchTopKCrosscoderTrainingSAEConfig,
    SparseBatchTopKTrainingSAEConfig,
    SparseTopKTrainingSAEConfig,
)
from diffsae_lens.training._optimizer import fuse_adam

Step = Callable[[torch.Tensor], object]
SIZES = {"d_in": [576, 1152, 960, 1920], "expansion": [4, 8, 32], "batch_size": [256, 2048, 4096],
         "k": [32]}  # fmt: skip
DEVICE_SIZES = {"d_in": [576, 960, 2304], "expansion": [32], "batch_size": [2048, 8192, 16384],
                "k": [32, 100]}  # fmt: skip
FLOOR = "floor: encoder product + Adam"


@dataclass(frozen=True)
class Size:
    """One point of the benchmark."""

    d_in: int
    d_sae: int
    batch_size: int
    k: int
    device: str = "cpu"

    @property
    def bytes_of_adam(self) -> int:
        """What a step must read and write: both weights, their gradients and moments, once."""
        n_read, n_written = 4, 4
        return (n_read + n_written) * 4 * 2 * self.d_in * self.d_sae


def sae_lens_step(config: TrainingSAEConfig, size: Size, *, fused: bool) -> Step:
    """One step of SAELens's trainer, as its runners make it."""
    torch.manual_seed(0)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=10**9, train_batch_size_samples=size.batch_size, lr=1e-4, lr_end=1e-4,
            device=size.device,
        ),
        TrainingSAE.from_dict(config.to_dict()).to(size.device),
        iter(()),
    )  # fmt: skip
    if fused:
        fuse_adam(trainer)
    return trainer.step


def dictionary_learning_step(size: Size) -> Step:
    """One step of dictionary-learning's BatchTopK trainer."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=10**6, activation_dim=size.d_in, dict_size=size.d_sae, k=size.k, layer=0, lm_name="",
        device=size.device, warmup_steps=0, seed=0, lr=1e-4,
    )  # fmt: skip
    steps = iter(range(1, 10**6))
    return lambda x: trainer.update(next(steps), x)


def floor_step(size: Size) -> Step:
    """The encoder's product, and Adam over all weights with gradients that are there already."""
    shape = size.d_sae, size.d_in
    parameters = [
        torch.nn.Parameter(torch.randn(shape, device=size.device) * 0.01) for _ in range(2)
    ]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def step(x: torch.Tensor) -> None:
        with torch.no_grad():
            x @ parameters[0].T
        optimizer.step()

    return step


def contenders(size: Size) -> dict[str, Callable[[], Step]]:
    """How to make each contender's step."""
    common = {"d_in": size.d_in, "d_sae": size.d_sae, "k": size.k, "device": size.device}

    def stock(config_class: type[TrainingSAEConfig], *, fused: bool = False, **options: object):
        return lambda: sae_lens_step(config_class(**common, **options), size, fused=fused)

    found = {
        FLOOR: lambda: floor_step(size),
        "ours: batchtopk": stock(SparseBatchTopKTrainingSAEConfig, fused=True),
        "ours: topk": stock(SparseTopKTrainingSAEConfig, fused=True),
        "ours: batchtopk crosscoder": stock(BatchTopKCrosscoderTrainingSAEConfig, fused=True),
        "SAELens batchtopk": stock(BatchTopKTrainingSAEConfig),
        "SAELens batchtopk, fused Adam": stock(BatchTopKTrainingSAEConfig, fused=True),
        "SAELens topk": stock(TopKTrainingSAEConfig),
        # Its backward pass fails on a CPU with decoder-norm scaling (`aten::view` of a sparse tensor).
        "SAELens topk, use_sparse_activations": stock(
            TopKTrainingSAEConfig, use_sparse_activations=True, rescale_acts_by_decoder_norm=False
        ),
        "dictionary-learning batchtopk": lambda: dictionary_learning_step(size),
    }
    try:
        import dictionary_learning  # noqa: F401
    except ImportError:
        del found["dictionary-learning batchtopk"]
    return found


def batches(size: Size) -> Iterator[torch.Tensor]:
    """The same batches for everyone, with a few strong directions as activations have."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(64, size.d_in, generator=generator)
    while True:
        codes = torch.randn(size.batch_size, 64, generator=generator).relu()
        noise = torch.randn(size.batch_size, size.d_in, generator=generator)
        yield (codes @ directions * 0.2 + noise).to(size.device)


def measure(size: Size, *, n_rounds: int) -> dict[str, float]:
    """Median seconds per step of every contender; the first round warms up."""
    if (
        size.device != "cpu"
    ):  # as a user's script does who wants speed; the floor and all others too
        torch.set_float32_matmul_precision("high")
    steps = {name: make() for name, make in contenders(size).items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    stream = batches(size)
    for _ in range(n_rounds + 1):
        batch = next(stream)
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            if size.device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def peak_memory(size: Size, name: str) -> int:
    """Bytes a process with this one contender holds at most, beyond the imports."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.benchmarks.dictionaries",
        "--memory-of",
        name,
    ]
    for option in ("d_in", "d_sae", "batch_size", "k"):
        command += [f"--{option.replace('_', '-')}", str(getattr(size, option))]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(finished.stdout.split()[-1])


def _memory_of(name: str, size: Size) -> int:
    # `ru_maxrss` would do, but a child inherits its parent's. 5 resets the peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step, stream = contenders(size)[name](), batches(size)
    for _ in range(3):
        step(next(stream))
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(field)]
    return int(line.split()[1]) * 1024


def report(size: Size, seconds: dict[str, float], memory: dict[str, int]) -> str:
    """A table of one size: seconds, times the floor, and how much faster the fastest of ours is."""
    floor = seconds[FLOOR]
    lines = [
        f"\nd_in {size.d_in}, d_sae {size.d_sae}, batch {size.batch_size}, k {size.k}",
        f"{'':38} {'s/step':>8} {'x floor':>8} {'tokens/s':>10} {'GB/s':>6} {'peak MB':>8}",
    ]
    for name, taken in seconds.items():
        peak = f"{memory[name] / 2**20:8.0f}" if name in memory else ""
        speed = f"{size.batch_size / taken:10,.0f} {size.bytes_of_adam / taken / 1e9:6.0f}"
        lines.append(f"{name:38} {taken:8.4f} {taken / floor:8.2f} {speed} {peak}")
    peers = {n: s for n, s in seconds.items() if not n.startswith(("ours", "floor"))}
    fastest = min(peers, key=lambda n: peers[n])
    ours = seconds["ours: batchtopk"]
    lines.append(f"ours: {peers[fastest] / ours:.2f} x as fast as {fastest}, the fastest peer")
    return "\n".join(lines)


def main() -> None:
    """Run the sizes asked for and write the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="where all of them train")
    parser.add_argument("--d-in", type=int, nargs="+")
    parser.add_argument("--d-sae", type=int, help="instead of --expansion")
    parser.add_argument("--expansion", type=int, nargs="+", help="of d_model")
    parser.add_argument("--batch-size", type=int, nargs="+")
    parser.add_argument("--k", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmark.json"))
    options = parser.parse_args()
    for name, sizes in (SIZES if options.device == "cpu" else DEVICE_SIZES).items():
        if getattr(options, name) is None:
            setattr(options, name, sizes)
    if options.memory_of:
        size = Size(options.d_in[0], options.d_sae, options.batch_size[0], options.k[0])
        print(_memory_of(options.memory_of, size))
        return
    machine = {
        "machine": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(),
    }  # fmt: skip
    print(machine)
    rows = []
    for d_in, expansion, batch_size, k in product(
        options.d_in, options.expansion, options.batch_size, options.k
    ):
        d_model = d_in // 2 if d_in in (1152, 1920) else d_in
        d_sae = options.d_sae or expansion * d_model
        size = Size(d_in, d_sae, batch_size, k, options.device)
        seconds = measure(size, n_rounds=options.rounds)
        without = options.no_memory or options.device != "cpu"
        memory = {} if without else {name: peak_memory(size, name) for name in seconds}
        print(report(size, seconds, memory), flush=True)
        rows.append({"size": vars(size), "seconds": seconds, "peak_bytes": memory})
        options.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
