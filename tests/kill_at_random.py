"""Kill runs at random moments, and check that nothing is lost.

    PYTHONPATH=. python tests/kill_at_random.py AdamW SOAP --kills 20

A run of each solver is killed repeatedly, in steps, evaluations and the
writing of checkpoints, three times out of four by SIGKILL, otherwise by
SIGTERM. Then it runs to its end, and must have the evaluations of a run that
was never killed, to the bit, and leave no files. The script prints a line per
solver; the exit code is 1 if anything was lost.
"""
import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

# Range of the drawn occurrences of each moment: the first three steps are
# preparation, and a checkpoint makes several syncs to disk.
DRAWN = {"step": (4, 12), "evaluation": (1, 3), "writing": (1, 12)}


def kill_at_random(solver, kills, num_steps, seed, folder):
    """Kill a run repeatedly, then let it end; return a report, and whether
    nothing was lost."""
    # Not above: each process runs the imports there again.
    from killed_run import Runs
    draw = random.Random(f"{solver} {seed}")
    whole = Runs(folder / "whole", solver, num_steps)
    broken = Runs(folder / "broken", solver, num_steps)
    code, output = whole.run()
    if code:
        raise RuntimeError(output)
    hits, too_late, again, newest = [], 0, 0, None
    while len(hits) < kills:
        moment = draw.choice(["step", "step", "evaluation", "writing"])
        number = "SIGKILL" if draw.random() < 0.75 else "SIGTERM"
        code, output = broken.run(moment, draw.randint(*DRAWN[moment]), number)
        if code == 0:
            # The run ended before the signal; the next one starts anew.
            too_late, newest = too_late + 1, None
            broken.results.unlink()
        elif code == (1 if number == "SIGTERM" else -signal.SIGKILL):
            hits.append(f"{moment} {number}")
            again += newest == broken.newest()
            newest = broken.newest()
        else:
            raise RuntimeError(f"It ended with code {code}.\n{output}")
    code, output = broken.run()
    if code:
        raise RuntimeError(output)
    is_equal = broken.evaluations() == whole.evaluations()
    left = broken.left()
    where = ", ".join(f"{hits.count(hit)} {hit}" for hit in sorted(set(hits)))
    return (
        f"{solver}: {len(hits)} kills ({where}; {again} of them before a new "
        f"checkpoint), {too_late} came too late; the last run resumed "
        f"{broken.times_resumed()} times; evaluations "
        f"{'equal' if is_equal else 'DIFFER'}; {len(left)} files left"
    ), is_equal and not left


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("solvers", nargs="+")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num-steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    all_well = True
    for solver in options.solvers:
        with tempfile.TemporaryDirectory() as folder:
            sentence, is_well = kill_at_random(
                solver, options.kills, options.num_steps, options.seed,
                Path(folder),
            )
        print(sentence, flush=True)
        all_well &= is_well
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
