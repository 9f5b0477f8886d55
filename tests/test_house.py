"""The house rules that no single notebook can hold: floors, export without a diff, and the form of the notebooks."""
import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted((ROOT / "vfmkd_nb").rglob("*.py"))


def _code(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def _name(p: Path) -> str:
    return str(p.relative_to(ROOT))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) > 10


def test_floors_hold():
    """core imports no chapter, a chapter imports no other chapter (contracts in pyproject.toml)."""
    done = subprocess.run(["lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_chapter_is_in_the_contracts():
    chapters = {p.name for p in (ROOT / "vfmkd_nb").iterdir() if (p / "__init__.py").is_file()} - {"core"}
    text = (ROOT / "pyproject.toml").read_text()
    for chapter in chapters:
        assert text.count(f'"vfmkd_nb.{chapter}"') >= 2, f"chapter {chapter} is missing in the import contracts"


def test_export_and_readme_leave_no_diff(tmp_path):
    """The package and the README are what the notebooks say."""
    for part in ("nbs", "vfmkd_nb", "bin"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_proc"))
    for f in ("settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / f, tmp_path / f)
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for command in (["nbdev_export"], ["nbdev_clean"], ["bin/readme"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    after = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    changed = sorted(str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    assert not changed, f"export, clean or readme change {changed}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=_name)
def test_notebook_form(notebook):
    """Title and blockquote first, no stored error, pictures of bounded size, and what exports also tests."""
    nb = json.loads(notebook.read_text())
    prose = "".join("".join(c["source"]) for c in nb["cells"][:3] if c["cell_type"] == "markdown")
    assert re.search(r"^# \S", prose, re.M) and re.search(r"^> \S", prose, re.M), "wants an H1 and a one-sentence blockquote"
    outputs = [o for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"], "an error is stored in its outputs"
    pictures = [len("".join(o["data"][m])) * 3 // 4 for o in outputs for m in ("image/png", "image/jpeg") if m in o.get("data", {})]
    assert all(n <= 60_000 for n in pictures), f"pictures over 60 KB: {pictures}"
    assert notebook.stat().st_size <= 600_000
    code = _code(notebook)
    if any(c.startswith("#| export") for c in code):
        assert any(re.search(r"\btest_\w+\(|\bassert\b", c) for c in code), "exports, and tests nothing"


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_module_form(module):
    """Public names have docstrings; no swallowed exception, no silenced warning, no unsafe load."""
    text = module.read_text()
    for bad in (r"except\s*:", r"except (Base)?Exception\s*:\s*(pass|continue)", r"weights_only\s*=\s*False", r"filterwarnings", r"import \*", r"\bTODO\b|\bFIXME\b"):
        assert not re.search(bad, text), f"{bad} in {module}"
    tree = ast.parse(text)
    definitions = [n for owner in [tree, *(c for c in tree.body if isinstance(c, ast.ClassDef))] for n in owner.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    for node in definitions:
        if not node.name.startswith("_") and node.name != "forward":  # a module's docstring says what its forward does
            assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 60, f"{node.name} is {node.end_lineno - node.lineno} lines long"
