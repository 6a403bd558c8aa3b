"""Change the code one spot at a time and list the changes that no test notices.

    python tests/mutants.py aida_lightning/optim/_state.py --tests tests/optim
    python tests/mutants.py callbacks --tests tests/callbacks --sample 60 --seed 0

Each mutant differs in one spot from a Python file under PATHS: another comparison or arithmetic
operator, `and` for `or`, a condition or a boolean turned round, a number one higher, a statement or
a returned value left out. pytest runs TESTS until the first failure; a mutant is killed if a test
fails, survives if all pass, and else runs out of time, which is four times what TESTS take without
a mutant. The mutants are made in a copy of the tree, so that the tree may be worked in meanwhile.
`--only` takes parts of the descriptions that are printed, such as `_state.py:40:`, and runs those
mutants alone: for a test that has just been written.

mutmut and cosmic-ray delete no statements and draw no samples; three in four of cosmic-ray's
mutants here replace an operator by one that its operands do not have.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


class Mutant(NamedTuple):
    path: Path
    description: str
    source: bytes


def change(node: ast.AST) -> tuple[ast.AST, str] | None:
    """Give the part of a node to change and the new code; None where there is nothing to change."""
    match node:
        case ast.Compare(left, [operator], [right]):
            return node, ast.unparse(ast.Compare(left, [OTHER[type(operator)]()], [right]))
        case ast.BinOp(left, operator, right) if type(operator) in OTHER:
            return node, ast.unparse(ast.BinOp(left, OTHER[type(operator)](), right))
        case ast.BoolOp(operator, values):
            return node, ast.unparse(ast.BoolOp(OTHER[type(operator)](), values))
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            return node, ast.unparse(operand)
        case ast.Constant(bool(value)):
            return node, str(not value)
        case ast.Constant(int(value) | float(value)):
            return node, str(value + 1)
        case ast.If(test) | ast.IfExp(test) | ast.While(test):
            if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
                return test, ast.unparse(ast.UnaryOp(ast.Not(), test))
        case ast.Return(ast.expr() as value) if ast.unparse(value) != "None":
            return node, "return None"
        case ast.Expr(ast.Call() | ast.IfExp()) | ast.Raise() | ast.Assert() | ast.AugAssign():
            return node, "pass"
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            return node, "pass"
    return None


def nodes_below(node: ast.AST) -> Iterator[ast.AST]:
    """Give the nodes below a node, without annotations and the insides of formatted strings."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield child
                yield from nodes_below(child)


def mutants_of(path: Path) -> Iterator[Mutant]:
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for changed in map(change, nodes_below(ast.parse(source))):
        if changed is None:
            continue
        node, code = changed
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        old = " ".join(source[begin:end].decode().split())
        description = f"{path}:{node.lineno}: {old} -> {code}"
        code = f"({code})" if isinstance(node, ast.expr) else code
        yield Mutant(path, description, source[:begin] + code.encode() + source[end:])


def verdict(tree: Path, tests: list[str], seconds: float | None) -> str:
    """Run tests in a copy of the tree and tell what became of the mutant in it."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tree, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return "survived" if process.wait(seconds) == 0 else "killed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that the tests started
        process.wait()
        return "timed out"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, help="files or folders, from the root")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="what pytest is given")
    parser.add_argument("--sample", type=int, help="how many mutants to draw; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample; 0 by default")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of descriptions")
    options = parser.parse_args()

    os.chdir(ROOT)
    files = [f for p in options.paths for f in (sorted(p.rglob("*.py")) if p.is_dir() else [p])]
    mutants = [mutant for path in files for mutant in mutants_of(path)]
    if options.sample is not None:
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    mutants = [m for m in mutants if any(part in m.description for part in options.only)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        left_out = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "build", "*.egg-info")
        shutil.copytree(ROOT, tree, symlinks=True, ignore=left_out)
        start = time.monotonic()
        if verdict(tree, options.tests, None) != "survived":
            sys.exit("the tests fail without any mutant")
        seconds = 4 * (time.monotonic() - start)
        verdicts = Counter()
        survivors = []
        for count, mutant in enumerate(mutants, start=1):
            original = (tree / mutant.path).read_bytes()
            (tree / mutant.path).write_bytes(mutant.source)
            found = verdict(tree, options.tests, seconds)
            (tree / mutant.path).write_bytes(original)
            print(f"{count}/{len(mutants)} {found}: {mutant.description}", flush=True)
            verdicts[found] += 1
            survivors += [mutant.description] if found == "survived" else []
    print(*(f"{count} {found}" for found, count in verdicts.items()), sep=", ")
    print(*survivors, sep="\n")


if __name__ == "__main__":
    main()
