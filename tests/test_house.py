"""Where modules live, and which way imports go."""
import ast
import glob
import os

import pytest
from helpers import ROOT

PAPER = {"main", "models", "nn", "deeploss", "batches"}
ROOMS = ("common", "dataset", "training", "inference")
# A module may import what stands further left in a line that it is in, and all of common.
ORDER = """
    common.errors common.console < common.machine common.downloads common.files
    dataset.pickles < dataset.index < dataset.boxes < dataset.builder dataset.toy dataset.poses
    dataset.index dataset.toy < dataset.bags
    dataset.builder dataset.poses < dataset.videos dataset.coco dataset.openpose dataset.photos
    dataset.builder dataset.photos < dataset.pairs
    dataset.videos dataset.photos dataset.poses dataset.builder dataset.pairs < dataset.selection
    dataset.index dataset.boxes < dataset.videos dataset.coco dataset.openpose dataset.photos dataset.pairs
    dataset.index dataset.boxes < dataset.selection
    common.machine < common.convolution
    nn < models
    dataset.index < batches
    common.errors < training.workers
    deeploss < training.config < training.runs training.checkpoints training.curves training.cluster
    training.checkpoints training.workers < training.cost
    nn models deeploss batches training.cluster < training.graphs
"""
FREE = ("inference", "main")  # these import anything that is no tool; the tools and tests, anything


def modules():
    """{name: path} of the project's modules, without tests."""
    paths = glob.glob(os.path.join(ROOT, "*.py"))
    for room in ROOMS + ("tools",):
        paths += glob.glob(os.path.join(ROOT, room, "**", "*.py"), recursive=True)
    names = {os.path.relpath(path, ROOT)[:-len(".py")].replace(os.sep, "."): path for path in paths}
    return {name: path for name, path in names.items() if not name.endswith("__init__")}


def imports(path, known):
    """The modules of the project that a file imports, anywhere in it."""
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports stand with their room's name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(known)


def allowed(name):
    """What a module may import of the project."""
    if name.split(".")[0] in FREE:
        return {other for other in modules() if other != "main" and not other.startswith("tools.")}
    may = set() if name.startswith("common.") else {other for other in modules() if other.startswith("common.")}
    for line in ORDER.strip().split("\n"):
        steps = [step.split() for step in line.split("<")]
        for i, step in enumerate(steps):
            if name in step:
                may.update(*steps[:i])
    return may


@pytest.mark.parametrize("name", [name for name in sorted(modules()) if not name.startswith("tools.")])
def test_imports_go_down_only(name):
    found = imports(modules()[name], modules())
    assert found <= allowed(name), "{} may not import {}".format(name, ", ".join(sorted(found - allowed(name))))


def test_there_is_no_circle_of_imports():
    graph = {name: imports(path, modules()) for name, path in modules().items()}
    while graph:
        leaves = {name for name, found in graph.items() if not found & set(graph)}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: found for name, found in graph.items() if name not in leaves}


def test_the_papers_five_files_stand_at_the_top():
    assert {name for name in modules() if "." not in name} == PAPER


def test_the_data_sets_need_no_tensorflow():
    for name, path in modules().items():
        if name.startswith(("dataset.", "common.")) and name not in (
                "common.machine", "common.convolution"):
            with open(path, encoding="utf-8") as file:
                assert "import tensorflow" not in file.read(), name


MAX_LINES = 50  # of a function: what fits a screen


@pytest.mark.parametrize("name", sorted(modules()))
def test_functions_fit_a_screen(name):
    with open(modules()[name], encoding="utf-8") as file:
        functions = [node for node in ast.walk(ast.parse(file.read())) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        # Python 3.7 does not know where a function ends: at the last line of anything in it.
        end = max(getattr(node, "lineno", 0) for node in ast.walk(function))
        assert end - function.lineno < MAX_LINES, f"{function.name}: {end - function.lineno + 1} lines"
