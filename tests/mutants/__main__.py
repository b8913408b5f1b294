"""The run of mutants: ``python -m tests.mutants``. Prints the table, and writes it unless modules are left out.

mutmut changes one thing at a time in the modules that pyproject.toml names, and runs the tests that reach it. A mutant
that no test notices is a survivor. explained.toml explains those that no test can notice; any other fails the run.

A whole run takes more than an hour. So results.json has what became of each mutant, with a hash of the function it is
in. A mutant is run again when its function has changed, or when its module is named.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import libcst
from mutmut import __main__ as mutmut
from mutmut.mutation.diff_apply import get_diff_for_mutant, read_functions_from_index
from mutmut.stats import status_by_exit_code

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "mutants"
_EXPLAINED = Path(__file__).with_name("explained.toml")
_KNOWN = Path(__file__).with_name("results.json")
_PAGE = _ROOT / "benchmarks/results/mutants.md"
_LEGEND = """\
- *killed by tests*: a test failed, or did not end.
- *killed by types*: `make lint` rejects it.
- *alike*: it differs only in texts of errors and of the log, or in what has no effect, such as the case of SQL words.
- *explained*: it differs in nothing that a user relies on; `tests/mutants/explained.toml` says why.
"""
_HEAD = ("module", "mutants", "killed by tests", "killed by types", "alike", "explained", "survived", "not run")
_KILLED = {"killed", "timeout", "segfault"}
_SKIPPED, _NOT_STARTED = 34, 255
_LETTERS = {"killed": "k", "segfault": "k", "timeout": "t", "caught by type check": "c", "survived": "s"}
# What takes a text for people, in an argument that is not named.
_WITH_TEXT = re.compile(r"(Error|Exception|ReadTimeout)(\.of|\.after)?$|super\(\)\.__init__$|_log_failure$|_report$")
_WITH_NAME = re.compile(r"(Thread|ThreadPoolExecutor|PeriodicTask)$")
_NAMES = {"name", "thread_name_prefix"}
_SQL_KEYWORD = re.compile(r"\b(?:AND|AS|BY|COUNT|FROM|GROUP|INSTR|OR|SELECT|WHERE)\b")


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test noticed.

    Attributes:
        function: where it is, such as ``pixyproxy.service.users.UserService.has_users``.
        change: the changed lines, each after "- " or "+ ", without indentation.
    """

    function: str
    change: str


def main() -> int:
    """Run the mutants; return 1 where one survived that is not explained, or was not run."""
    arguments = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    arguments.add_argument("--only", nargs="*", default=[], help="names of modules, such as page_tokens")
    arguments.add_argument("--processes", type=int, default=os.cpu_count())
    arguments.add_argument("--fresh", action="store_true", help="run all, whatever is known of them")
    given = arguments.parse_args()
    os.chdir(_ROOT)
    shutil.rmtree(_RESULTS, ignore_errors=True)
    if not given.fresh:
        _restore_results()
    _generate(given.processes)
    _skip_alike()
    patterns = [f"*.{name}.*" for name in given.only]
    command = ["mutmut", "run", "--max-children", str(given.processes), *patterns]
    # It starts mypy with the first Python there.
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        subprocess.run(command, check=True, env=os.environ | {"PATH": search_path})
    except KeyboardInterrupt:
        print("\nInterrupted. The next run goes on from here.\n")  # noqa: T201
    _keep_results()
    return report(given.only)


# --- What need not be run --------------------------------------------------------------------------------------------


def _generate(processes: int) -> None:
    """Make the mutants, as ``mutmut run`` does; what it then finds made, it leaves as it is."""
    mutmut.set_mutant_under_test("mutant_generation")
    _RESULTS.mkdir(exist_ok=True)
    with mutmut.CatchOutput(spinner_title="Generating mutants"):
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.create_mutants(processes)


def _skip_alike() -> None:
    """Mark the mutants that no test can notice: each would be run with all tests that reach it."""
    for path, meta in _metas():
        results = meta["exit_code_by_key"]
        for name, exit_code in results.items():
            if exit_code is None and _is_alike(name, path):
                results[name] = _SKIPPED
        (_RESULTS / f"{path}.meta").write_text(json.dumps(meta), encoding="utf-8")


# --- What is known of earlier runs -----------------------------------------------------------------------------------


def _keep_results() -> None:
    """Write what became of each mutant: for each function its hash, and a letter for each of its mutants."""
    known: dict[str, dict[str, list[str]]] = {}
    for path, meta in _metas():
        letters: dict[str, str] = {}
        for name, exit_code in meta["exit_code_by_key"].items():
            function = name.rpartition(".")[2].partition("__mutmut_")[0]
            letters[function] = letters.get(function, "") + _LETTERS.get(status_by_exit_code[exit_code], "-")
        known[path] = {
            function: [meta["hash_by_function_name"][function], results] for function, results in letters.items()
        }
    _KNOWN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _restore_results() -> None:
    """Have mutmut run only what is not known."""
    if not _KNOWN.exists():
        return
    exit_codes = {"k": 1, "t": 36, "c": 37, "s": 0, "-": None}
    for path, functions in json.loads(_KNOWN.read_text(encoding="utf-8")).items():
        module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        meta = {
            "exit_code_by_key": {
                f"{module}.{function}__mutmut_{number}": exit_codes[letter]
                for function, (_, letters) in functions.items()
                for number, letter in enumerate(letters, 1)
            },
            "hash_by_function_name": {function: digest for function, (digest, _) in functions.items()},
            "durations_by_key": {},
            "estimated_durations_by_key": {},
        }
        file = _RESULTS / f"{path}.meta"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(meta), encoding="utf-8")


def _metas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Give what mutmut keeps of each module. A mutant whose tests could not be started has not been run."""
    for file in sorted(_RESULTS.rglob("*.py.meta")):
        meta = json.loads(file.read_text(encoding="utf-8"))
        results = meta["exit_code_by_key"]
        meta["exit_code_by_key"] = {name: None if code == _NOT_STARTED else code for name, code in results.items()}
        yield str(file.relative_to(_RESULTS).with_suffix("")), meta


# --- The report ------------------------------------------------------------------------------------------------------


def report(only: Sequence[str]) -> int:
    """Print and write what the run has found, and return 1 where a mutant survived that is not explained."""
    explained = {
        Survivor(function, entry["change"].strip())
        for function, entries in tomllib.loads(_EXPLAINED.read_text(encoding="utf-8")).items()
        for entry in entries
    }
    counts: dict[str, Counter[str]] = {}
    survivors: list[Survivor] = []
    for path, results in _results(only):
        counted = counts[path] = Counter[str]()
        for name, exit_code in results.items():
            status = status_by_exit_code[exit_code]
            if exit_code is None:
                kind = "not run"
            elif status in _KILLED:
                kind = "killed by tests"
            elif status == "caught by type check":
                kind = "killed by types"
            elif exit_code == _SKIPPED or _is_alike(name, path):  # Those of named modules are run.
                kind = "alike"
            else:
                survivor = _survivor(name, path)
                survivors.append(survivor)
                kind = "explained" if survivor in explained else "survived"
            counted["mutants"] += 1
            counted[kind] += 1
    table = _table(counts)
    print(f"{table}\n")  # noqa: T201
    unexplained = [survivor for survivor in survivors if survivor not in explained]
    for survivor in unexplained:
        print(f"{survivor.function}\n{survivor.change}\n")  # noqa: T201
    if not only:
        for killed in explained.difference(survivors):
            print(f"{killed.function}: explained, but killed\n{killed.change}\n")  # noqa: T201
        _PAGE.write_text(
            f"# make mutants\n\n{datetime.now(UTC):%Y-%m-%d}, with mutmut {version('mutmut')}.\n\n{_LEGEND}\n{table}\n",
            encoding="utf-8",
        )
    return 1 if unexplained or any(counted["not run"] for counted in counts.values()) else 0


def _results(only: Sequence[str]) -> Iterator[tuple[str, dict[str, int | None]]]:
    """Give the exit codes of the mutants of each module, by name."""
    for path, meta in _metas():
        results = meta["exit_code_by_key"]
        if results and (not only or Path(path).stem in only):
            yield path, results


def _survivor(name: str, path: str) -> Survivor:
    module, _, mangled = name.partition("__mutmut_")[0].rpartition(".")
    function = mangled.removeprefix("x_") if mangled.startswith("x_") else mangled[2:].replace("ǁ", ".")
    changed = [
        f"{line[0]} {line[1:].strip()}"
        for line in get_diff_for_mutant(name, path=path).splitlines()
        if line[0] in "+-" and not line.startswith(("+++", "---"))
    ]
    return Survivor(f"{module}.{function}", "\n".join(changed))


# --- Differences without an effect -----------------------------------------------------------------------------------


class _Normalized(ast.NodeTransformer):
    """Removes what nothing depends on, so that a mutant in which nothing else differs equals the original."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = ast.unparse(node.func)
        if function == "cast" and len(node.args) == 2:
            value: ast.AST = self.visit(node.args[1])
            return value
        if function == "datetime.now":
            # A time without a zone cannot be compared with one that has it, and the databases take it for local time.
            node.args = []
        if _WITH_TEXT.search(function):
            for part in (part for argument in node.args for part in ast.walk(argument)):
                if isinstance(part, ast.Constant) and (part.value is None or " " in str(part.value)):
                    part.value = ""
        if _WITH_NAME.search(function):
            node.args = [argument for argument in node.args if not isinstance(argument, ast.Constant)]
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in _NAMES]
        if function.endswith(("headers.get", ".encode")) and node.args:
            # Names of headers and of encodings have no case.
            self._lower(node.args[0])
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str):
            node.value = _SQL_KEYWORD.sub(lambda keyword: keyword[0].lower(), node.value)
        return node

    def _lower(self, argument: ast.expr) -> None:
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            argument.value = argument.value.lower()


def _is_alike(name: str, path: str) -> bool:
    """Tell whether a mutant differs in nothing but a text for people, or has the same effect."""
    functions = read_functions_from_index(name, path)
    assert functions is not None, name
    original, mutant = (
        ast.dump(_Normalized().visit(ast.parse(libcst.Module([function]).code))) for function in functions
    )
    return original == mutant


# --- The table -------------------------------------------------------------------------------------------------------


def _table(counts: dict[str, Counter[str]]) -> str:
    total = sum(counts.values(), Counter[str]())
    rows: Iterable[Sequence[str]] = (
        _HEAD,
        ("---",) * len(_HEAD),
        *((path, *(f"{counted[kind]:,}" for kind in _HEAD[1:])) for path, counted in counts.items()),
        ("**all**", *(f"{total[kind]:,}" for kind in _HEAD[1:])),
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
