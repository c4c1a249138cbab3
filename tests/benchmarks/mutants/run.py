"""How many small bugs in the package the test kit finds, without any other test.

Each mutant is a copy of the package in which one piece of source text is replaced; on it, the kit's checks run on the
subjects of ``tests/contract`` until one fails. Prints a line per mutant, and the share that was caught.

    python tests/benchmarks/mutants/run.py [--rooms quantizers losses prior] [--filter TEXT] [--log FILE]

With ``--log``, results are kept in a file, and mutants that were caught are not run again.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import queue as queue_module
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ROOMS = {
    "quantizers": ["quantizers"],
    "losses": ["losses"],
    "family": ["family"],
    "functions": ["quantizers"],
    "prior": ["priors"],
    "model": ["tokenizers"],
}
SLOW = [
    "check_training",
    "check_revival_prefers_errors",
    "check_two_processes",
    "check_export",
    "check_compile",
    "check_sampling_of_compiled",
    "check_tokenizer_export",
    "check_tokenizer_training",
]


def load(path):
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_failure(room):
    """Name of the first check that fails on a subject of the room, else None."""
    from vq_components.testing import CheckFailure, checks_of

    subjects = [subject for name in ROOMS[room] for subject in load(ROOT / "tests/contract" / f"{name}.py").subjects()]
    jobs = [(SLOW.index(name) if name in SLOW else -1, subject, name, check) for subject in subjects
            for name, check in checks_of(subject).items() if name not in subject.expected_failures]  # fmt: skip
    for _, subject, name, check in sorted(jobs, key=lambda job: job[0]):
        try:
            check(subject)
        except CheckFailure as failure:
            return f"{name} on {subject.name}: {failure.measured[:100]}"
    return None


def child(source, room, queue):
    sys.path.insert(0, str(source))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            queue.put(first_failure(room) or "")
        except BaseException as error:
            queue.put(f"{type(error).__name__} when building the subjects: {error}"[:160])


def run(room, path, old, new, *, seconds=240):
    """What caught the mutant; empty if nothing did."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "vq_components"
        shutil.copytree(ROOT / "src" / "vq_components", package, ignore=shutil.ignore_patterns("__pycache__"))
        if path is not None:
            text = (package / path).read_text(encoding="utf-8")
            if text.count(old) < 1:
                return None
            (package / path).write_text(text.replace(old, new, 1), encoding="utf-8")
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        worker = context.Process(target=child, args=(folder, room, queue))
        worker.start()
        try:
            return queue.get(timeout=seconds)
        except queue_module.Empty:  # not a finding: the machine may have been busy
            worker.kill()
            print(f"no end within {seconds} s")
            return ""
        finally:
            worker.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rooms", nargs="+", default=list(ROOMS), choices=ROOMS)
    parser.add_argument("--filter", default="")
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    known = json.loads(args.log.read_text(encoding="utf-8")) if args.log and args.log.exists() else {}
    for room in args.rooms:
        reason = None if args.filter or f"{room}: none" in known else run(room, None, "", "")
        if reason:
            sys.exit(f"The package itself fails: {reason}")
        known[f"{room}: none"] = ""
        for name, path, old, new in load(HERE / f"{room}.py").MUTANTS:
            key = f"{room}: {name}"
            if args.filter not in key or known.get(key):
                continue
            start = time.perf_counter()
            found = run(room, path, old, new)
            verdict = "STALE" if found is None else "caught" if found else "MISSED"
            print(f"{verdict:7} {time.perf_counter() - start:5.1f} s  {key}  {found or ''}", flush=True)
            if found is not None:
                known[key] = found
            if args.log:
                args.log.write_text(json.dumps(known, indent=1), encoding="utf-8")
    listed = {f"{room}: {mutant[0]}" for room in args.rooms for mutant in load(HERE / f"{room}.py").MUTANTS}
    results = {key: found for key, found in known.items() if key in listed}
    caught = sum(bool(found) for found in results.values())
    print(f"caught {caught} of {len(results)} ({100 * caught / max(len(results), 1):.1f} %)")


if __name__ == "__main__":
    main()
