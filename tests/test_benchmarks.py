import ast
from pathlib import Path

import pytest

SCRIPTS = sorted(
    path for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py") if "__main__" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.stem))
def test_every_script_has_the_option_that_make_bench_gives(script: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    options = {call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)}
    assert "--quick" in options
