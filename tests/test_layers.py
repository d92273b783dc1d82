"""collector, sinks and fleet meet in Kafka and ClickHouse, never in Python."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"schemas": set(), "collector": {"schemas"}, "sinks": {"schemas"}, "fleet": {"schemas"}}
STAGES = set(MAY_IMPORT)


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_imports_only_what_it_may(stage: str) -> None:
    files = list((ROOT / stage).rglob("*.py"))
    assert files
    for file in files:
        wrong = (imported(file) & STAGES) - MAY_IMPORT[stage] - {stage}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_only_the_child_imports_bcc() -> None:
    using = [f for stage in STAGES for f in (ROOT / stage).rglob("*.py") if "bcc" in imported(f)]
    assert [file.name for file in using] == ["loader_child.py"]
