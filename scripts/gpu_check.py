"""Tests and measures slt-run on this machine's NVIDIA card, against PyTorch there. Needs no network, no Rust.

BIN_DIR is what scripts/gpu_pack.sh made. Parts, in the order in which they run:
  a  the tests that need a card, with SLT_RUN_NEED_GPU=1: no card is a failure then, not a test left out
  b  the mini corpus in f32, bfloat16 and float16: accuracy and loss
  c  a run under amp that is stopped and resumed: the same checkpoint, to the bit?
  d  clips of 128 frames, 16 loader threads: how long does the card wait?
  e  speed and memory of a training step, in turns with PyTorch eager and compiled
  f  the card's matrix rate and copy bandwidth, the floor that they imply, and what is reached of it

OUT/gpu_check.json has everything, OUT/gpu_check.txt is a table (printed too), OUT/gpu_check.log what each program said.
All three are whole after every single result. Parts that another call with the same OUT, card and build has measured
stay: where one command's time is limited, a few calls with --only share the work. Exit code 0: every target of the
parts asked for holds; 1: not all; 2: a wrong call. --dry goes through all of it on the CPU in tiny sizes, to try it.
"""
from __future__ import annotations

import json
import re
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path
from statistics import median

import lab
from gpu_floor import step_bytes, step_flops
from lab import CONFIG, ROOT, Failure, dataset, rate, seconds

AMP = {name: ["--precision", "amp", "--set", f"optimization.amp_dtype={name}"] for name in ("bfloat16", "float16")}
PRECISIONS = {"float32": ["--precision", "fp32"], **AMP}
TESTS = {"unit-tests": ["on_a_card", "engine::cuda::driver"], "suite-tests": ["gpu::"]}
# Who takes turns. What may take minutes to compile comes last, and what is compared first among it; it leaves RESERVE
# seconds to what comes after.
BF16, F16, AS_USED = "slt-run bfloat16", "slt-run float16", "PyTorch eager-f16"
EAGER, EXACT = [F16, AS_USED, BF16, "PyTorch eager-bf16"], ["slt-run float32", "PyTorch eager-f32"]
COMPILED, RESERVE = [BF16, "PyTorch compile-bf16", F16, "PyTorch compile-f16", BF16, F16], 45
# How many times as fast the first is to be as the second; None stands for PyTorch's fastest.
RATIOS = [(BF16, AS_USED, 1.3), (F16, AS_USED, None), (BF16, None, 1.0)]


def sizes(quick: bool, dry: bool) -> Namespace:
    """How much is done: in full, for --quick, and for --dry."""
    s = dict(limit=1200, tests=300, seeds=[0, 1, 2], resumed=["bfloat16", "float16"], batch=4, frames=16, size=224,
             depth=12, steps=100, warmup=20, turns=2 * EAGER + EXACT, long=128, long_steps=10, chunk=64,
             curve=[16, 32, 64, 128], clips=85, epochs=6, product=8192, copy_gib=4.0, small=[])
    if quick:
        s |= dict(limit=575, tests=200, seeds=[0], resumed=["bfloat16"], steps=30, warmup=10, turns=EAGER, long_steps=4,
                  curve=[32, 128], epochs=3)
    if dry:
        s |= dict(seeds=[0], resumed=["bfloat16"], batch=1, frames=2, size=32, depth=1, steps=2, warmup=1, turns=EAGER,
                  long=4, long_steps=1, chunk=2, curve=[2, 4], clips=10, epochs=2, product=256, copy_gib=0.02,
                  small=["--set", "model.backbone.depth=1", "--vocab-size", 1000])
    return Namespace(**s)


def gb(run: dict, key: str = "peak_gpu_gib") -> str:
    return f"{(run.get(key) or 0) * 2**30 / 1e9:.1f} GB"


class Check(lab.Lab):
    PARTS = {"a": "tests on the card", "b": "mini corpus", "c": "stopped and resumed", "d": "feeding",
             "e": "a training step, against PyTorch", "f": "the card's rates and the floor"}
    JUDGED, KEYS = True, ["gpu", "commit", "dry"]

    def mini(self, name: str, dtype: str, seed: int, *flags: object, **how) -> list[dict]:
        """The mini corpus, wherever it is: the experiment file's own paths fit one working directory only."""
        data = self.args.shared / "data" / "lsa_t_mini"
        return self.train(name, data.with_suffix(".toml"), *dataset(data), *PRECISIONS[dtype], "--seed", seed, *flags,
                          **how)

    def part_a(self) -> None:
        env = {"SLT_RUN_BINARY": str(self.args.program)} | ({} if self.args.dry else {"SLT_RUN_NEED_GPU": "1"})
        for name, filters in TESTS.items():
            self.attempt(name, self.tests, name, filters, env)

    def tests(self, name: str, filters: list[str], env: dict[str, str]) -> None:
        # With --nocapture the log shows which test a limit struck, and what a test printed that passed all the same.
        command = [self.args.program.parent / name, *filters, "--test-threads=1", "--nocapture"]
        said = "\n".join(self.run.call(command, name, self.args.sizes.tests, env, ROOT, codes=(0, 101)))
        passed, failed = re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", said).groups()
        # Faults are made on a pretended CUDA alone.
        out = re.findall(r"left out: (?!needs the pretended CUDA).*", said)
        names = ", ".join(dict.fromkeys(re.findall(r"^    (\S+::\S+)$", said, re.MULTILINE)))
        self.row(name, f"{passed} passed, {failed} failed, {len(out)} left out{': ' if names else ''}{names}",
                 "some, and all pass", passed != "0" and failed == "0" and (self.args.dry or not out))

    def part_b(self) -> None:
        for seed in self.args.sizes.seeds:
            exact = self.attempt(f"seed {seed}, float32", self.learned, seed, "float32")
            for dtype in AMP:
                self.attempt(f"seed {seed}, {dtype}", self.learned, seed, dtype, exact)

    def learned(self, seed: int, dtype: str, exact: tuple | None = None) -> tuple:
        """The last loss and accuracy, which are to be near those in f32, or good where there are none."""
        name = f"seed {seed}, {dtype}"
        last = self.raw(name, self.mini(name, dtype, seed))[-1]
        loss, accuracy = last["val_loss"], last["val_accuracy"]
        if loss is None:
            raise Failure("the loss is not finite")
        near = "loss f32's ± 0.02, accuracy its", exact and abs(loss - exact[0]) <= 0.02 and accuracy == exact[1]
        good = "loss ≤ 0.08, accuracy 1", loss <= 0.08 and accuracy == 1
        self.row(name, f"loss {loss:.4f}, accuracy {accuracy}", *(near if exact else good))
        return loss, accuracy

    def part_c(self) -> None:
        for dtype in self.args.sizes.resumed:
            self.attempt(f"{dtype}, resumed", self.resumed, dtype)

    def resumed(self, dtype: str) -> None:
        whole, parts = f"{dtype}, in one go", f"{dtype}, stopped"
        self.mini(whole, dtype, 3, "--epochs", 40)
        stopped = len(self.mini(parts, dtype, 3, "--epochs", 40, codes=[128 + signal.SIGTERM],
                                until=lambda: len(lab.metrics(self.work / parts)) >= 12))
        epochs = len(self.mini(parts, dtype, 3, "--epochs", 40, "--resume"))
        checkpoints = [self.work / name / "last.pt" for name in (whole, parts)]
        differ = self.raw(dtype, self.peer("same", *checkpoints, limit=90))
        for part, names in differ.items():
            found = f"{len(names)} others, such as {names[0]}" if names else "the same"
            self.row(f"{dtype}: {part}", f"{found}, stopped after epoch {stopped} of {epochs}",
                     "the same bits as in one go", not names and epochs == 40)

    def part_d(self) -> None:
        s, clips = self.args.sizes, self.work / "clips"
        # A quarter of the clips is for validation; each has from half of these frames to all of them.
        self.run.call([self.args.program, "demo", clips, "--clips", s.clips, "--frames", 2 * s.long, "--size", s.size,
                       "--signs", 2, "--data-only", "--quiet"], "drawing clips", 150)
        lines = self.raw("metrics", self.train(
            "feeding", CONFIG, *dataset(clips), "--num-workers", 16, "--batch-size", 4, "--sequence-length", s.long,
            "--image-size", s.size, "--epochs", s.epochs, "--lr", 1e-4, "--precision", "amp", *s.small))
        self.waiting(f"{s.epochs} epochs, 16 threads", lines)
        self.row("images in training", rate(median(line["images_per_second"] for line in lines)))

    def named(self, who: str, frames: int, chunk: int | None = None) -> str:
        chunks = f" in chunks of {chunk} frames" if chunk else ""
        return f"{who}, {self.args.sizes.batch} x {frames} x {self.args.sizes.size}{chunks}"

    def step(self, who: str, frames: int, chunk: int | None = None) -> dict:
        """Training steps; why there are no figures is a result, too."""
        s, (program, kind) = self.args.sizes, who.split()
        steps, warmup = (s.steps, s.warmup) if frames == s.frames else (s.long_steps, 2)
        limit = min(300, self.run.deadline - time.monotonic() - RESERVE) if "compile" in kind else 150
        try:
            if program == "PyTorch":
                return self.peer("step", s.batch, frames, s.size, "--mode", kind, "--steps", steps, "--warmup", warmup,
                                 "--device", self.args.device, "--depth", s.depth, limit=limit)
            chunks = ["--set", f"optimization.frames_per_chunk={chunk}"] if chunk else []
            return self.bench(*PRECISIONS[kind], "--batch-size", s.batch, "--sequence-length", frames, "--image-size",
                              s.size, "--steps", steps, *chunks, *s.small, limit=limit)
        except Failure as failure:
            return {"failed": str(failure)}

    def part_e(self) -> None:
        s, runs = self.args.sizes, self.raw("runs", {})
        # With a fixed chunk, only the batch's bytes and the head grow with the frames.
        long = [(BF16, s.long), (AS_USED, s.long), *((BF16, frames, s.chunk) for frames in s.curve)]
        for kinds in ([(who, s.frames) for who in s.turns] + long, [(who, s.frames) for who in COMPILED]):
            for kind in kinds:
                runs.setdefault(self.named(*kind), []).append(self.step(*kind))
                self.report.write()
            # The table is there before torch.compile takes its time, and made anew after it.
            self.report.part["rows"].clear()
            speed = {name: self.speed(name, tried) for name, tried in runs.items()}
        defaults, at = runs[self.named(BF16, s.long)][0], self.named("", s.frames)
        self.row("documented defaults: peak memory", gb(defaults), "≤ 40 GB",
                 None if self.args.dry else 0 < defaults.get("peak_gpu_gib", 0) <= 40e9 / 2**30)
        best = max((name for name in speed if name.startswith("PyTorch") and name.endswith(at)), key=speed.get)
        for ours, theirs, least in RATIOS:
            other = f"{theirs}{at}" if theirs else best
            ratio = speed[ours + at] / speed[other] if speed[other] else 0.0
            self.row(f"{ours} to {'' if theirs else 'the fastest, '}{other}", f"{ratio:.2f} ×",
                     f"≥ {least} ×" if least else "", ratio >= least if least and not self.args.dry else None)

    def speed(self, name: str, tried: list[dict]) -> float:
        """The median over the runs; 0 where there is none, which is PyTorch's good right and not slt-run's."""
        good, ours = [run for run in tried if "images_per_s" in run], "PyTorch" not in name
        if not good:
            why = tried[-1].get("failed", f"out of memory, with {gb(tried[-1])}")
            self.row(name, why, "measured" if ours else "", False if ours else None)
            return 0.0
        figures, step = sorted(run["images_per_s"] for run in good), median(run["step_s_median"] for run in good)
        spread = f" ({rate(figures[0])} to {rate(figures[-1])} in {len(good)} runs)" if good[1:] else ""
        taken = "" if ours else f" of tensors, {gb(good[-1], 'peak_gpu_reserved_gib')} taken"
        self.row(name, f"{rate(median(figures))}{spread}, {seconds(step)} a step, {gb(good[-1])}{taken}")
        return median(figures)

    def part_f(self) -> None:
        s = self.args.sizes
        rates = self.raw("rates", self.peer("rates", s.product, s.copy_gib, "--device", self.args.device, limit=120))
        for name in ("bf16", "f16", "f32"):
            self.row(f"a product of {s.product}³, {name}", f"{rates[name] / 1e12:,.3g} TFLOP/s")
        self.row("a copy, bytes read and written", f"{rates['copy'] / 1e12:.2f} TB/s")
        # Of this or an earlier call.
        runs = self.report.parts.get("e", {"raw": {}})["raw"].get("runs", {})
        for frames in (s.frames, s.long):
            tried = runs.get(self.named(BF16, frames)) or [self.step(BF16, frames)]
            self.floor(self.named("", frames), [run for run in tried if "parameters" in run], frames, rates)

    def floor(self, name: str, runs: list[dict], frames: int, rates: dict) -> None:
        """Backbone blocks alternate between matrix units and memory, so a good step lies between the floor where one
        always hides the other and that where they never overlap."""
        s, step = self.args.sizes, median(run["step_s_median"] for run in runs)
        flops = step_flops(s.batch, frames, s.size, s.depth)
        moved = step_bytes(s.batch, frames, s.size, s.depth, runs[0]["parameters"])
        matrix, memory = flops / rates["bf16"], moved / rates["copy"]
        hidden, in_turn = max(matrix, memory), matrix + memory
        self.row(f"{flops / 1e12:.3g} TFLOP in bf16, {moved / 1e9:.3g} GB{name}",
                 f"{seconds(matrix)}, {seconds(memory)}: {seconds(hidden)} at once, {seconds(in_turn)} in turn")
        self.row(f"slt-run's step{name}", f"{seconds(step)}, {step / hidden:.2f} and {step / in_turn:.2f} times these; "
                 f"{matrix / step:.1%} of the bf16 rate, {memory / step:.1%} of the bandwidth")


def arguments() -> Namespace:
    ap = lab.parser(__doc__, Check.PARTS, list(Check.PARTS))
    ap.add_argument("bin_dir", metavar="BIN_DIR", type=Path, help="the folder that gpu_pack.sh made")
    ap.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "target" / "gpu_check", help="[%(default)s]")
    ap.add_argument("--limit", metavar="SECONDS", type=float, help="stop in good order by then [1200, --quick: 575]")
    ap.add_argument("--dry", action="store_true", help="on the CPU, in tiny sizes: are the scripts in order?")
    args = ap.parse_args()
    args.sizes, args.device = sizes(args.quick, args.dry), "cpu" if args.dry else "cuda"
    args.limit, args.python = args.limit or args.sizes.limit, args.python or sys.executable
    args.program = (args.bin_dir / "slt-run").absolute()
    args.file, args.log = args.out / "gpu_check", args.out / "gpu_check.log"
    if not args.program.is_file():
        ap.error(f"{args.bin_dir} holds no slt-run: scripts/gpu_pack.sh makes such a folder")
    args.out.mkdir(parents=True, exist_ok=True)
    for program in filter(Path.is_file, (args.bin_dir / name for name in ("slt-run", *TESTS))):
        # Copies between machines lose the permission at times.
        program.chmod(0o755)
    pack = args.bin_dir / "pack.json"
    args.about = {"commit": json.loads(pack.read_text())["commit"] if pack.exists() else "unknown", "dry": args.dry}
    return args


if __name__ == "__main__":
    sys.exit(lab.main(Check, arguments()))
