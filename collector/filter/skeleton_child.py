"""Compile the fixed part of the filter to instructions: ``skeleton_child.py HEADER`` prints them as JSON.

It runs under the distribution's Python, which has the compiler library (see collector.loader_child). The
answer: ``pieces`` (name → instructions in hex, map numbers in place) and ``maps`` in the order of their
numbers. Standard library only.
"""

import json
import os
import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

from collector import source
from collector.btf import Btf
from collector.loader_child import NO_BCC, Module, answers
from schemas.errors import BpfleetError

FILE = source.ROOT / "xdp" / "filter.bpf.c"


def compile_skeleton(header: str) -> dict[str, object]:
    """Everything that is in filter.bpf.c; ``header`` is generated from the declarations."""
    text = FILE.read_text()
    needs = source.scan(text, FILE.parent)
    pieces = re.findall(r"^PIECE\((\w+)\)", text, re.MULTILINE)
    entries = "".join(f"ENTRY({each})\n" for each in pieces)
    before = source.prelude(needs, Btf.read(), header)
    module = Module(f'{before}#include "{FILE}"\n{entries}{source.postlude(needs, header)}')
    maps = []
    for number, name in enumerate(source.all_maps(needs, header)):
        kind, flags, key, value, size = answers(module, number)
        maps.append({"name": name, "kind": kind, "flags": flags, "key": key, "value": value, "entries": size})
    return {"pieces": {name: module.code(f"entry_{name}").hex() for name in pieces}, "maps": maps}


def main() -> None:
    """Answer with JSON; a failure is ``error``, in one line."""
    os.environ["BCC_KERNEL_SOURCE"] = str(source.ROOT / "kernel")
    try:
        answer = compile_skeleton(sys.stdin.read())
    except ImportError:
        answer = {"error": NO_BCC}
    except BpfleetError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
