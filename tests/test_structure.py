"""The house: two rooms with one door, no circles, and every room above what it uses."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room may use those before it, and itself.
GADGET = (
    "errors",
    "fourier",
    "logs",
    "progress",
    "settings",
    "stream",
    "scan",
    "files",
    "kspace",
    "images",
    "core",
    "compute",
    "target",
    "report",
    "phantom",
    "replay",
    "service",
    "training",
    "doctor",
    "evaluate",
    "bench",
    "cli",
)
CORE = (
    "_version",
    "errors",
    "error_codes",
    "checks",
    "registry",
    "settings",
    "frame",
    "lengths",
    "run",
    "side_by_side",
    "measurement",
    "prior",
    "estimate",
    "uncertainty",
    "result",
    "wrapped",
    "reconstruction",
)


def modules(package):
    """Dotted name to file of every module of a package."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = {**modules("gadget"), **modules("pogmdm_core")}


def imports_of(name):
    """Modules of this project that a module imports, wherever in it and also for types alone."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inside or {node.module}
    return found & MODULES.keys() - {name}


def is_lazy_package(name):
    """The two packages hand their public names on, on first use; what is inside never goes through that door."""
    return name in ("gadget", "pogmdm_core")


GRAPH = {name: {other for other in imports_of(name) if not is_lazy_package(other)} for name in MODULES}


def test_the_graph_is_read():
    assert "gadget.target" in GRAPH["gadget.service.client"]
    assert "pogmdm_core.frame" in GRAPH["pogmdm_core.measurement.encoding"]
    assert len(GRAPH) > 120


def test_no_module_imports_itself_by_way_of_others():
    tuple(TopologicalSorter({n: o for n, o in GRAPH.items() if not is_lazy_package(n)}).static_order())


def test_the_core_knows_nothing_of_the_gadget_nor_of_mrd():
    for name, path in modules("pogmdm_core").items():
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names += [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
        assert not {part.partition(".")[0] for part in names} & {"gadget", "ismrmrd", "socket", "h5py", "gadgetron"}, (
            name
        )


@pytest.mark.parametrize(("package", "order"), [("gadget", GADGET), ("pogmdm_core", CORE)])
def test_rooms_use_those_below_them(package, order):
    def room(name):
        return name.split(".")[1] if "." in name else ""

    for name, others in GRAPH.items():
        if not name.startswith(f"{package}.") or room(name) not in order:
            continue
        for other in others:
            if other.startswith(f"{package}.") and room(other) in order:
                assert order.index(room(other)) <= order.index(room(name)), f"{name} uses {other}"


@pytest.mark.parametrize(("package", "order"), [("gadget", GADGET), ("pogmdm_core", CORE)])
def test_every_room_has_its_place(package, order):
    top = {name.split(".")[1] for name in MODULES if name.startswith(f"{package}.")}
    assert top == set(order)


@pytest.mark.parametrize("package", ["gadget", "pogmdm_core"])
def test_nothing_inside_goes_through_the_package_s_own_door(package):
    """Names that a package hands on, on first use, would hide who imports whom."""
    for name, path in modules(package).items():
        if is_lazy_package(name):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == package:
                inside = {n.split(".")[1] for n in MODULES if n.startswith(f"{package}.")}
                assert {alias.name for alias in node.names} <= {"__version__"} | inside, name
            if isinstance(node, ast.Import):
                assert package not in {alias.name for alias in node.names}, name


def test_the_flow_of_a_scan_reconstructs_through_one_door():
    others = ("gadget.core", "gadget.evaluate", "gadget.bench", "gadget.training", "gadget.doctor")
    for name, path in modules("gadget").items():
        if name.startswith(others):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pogmdm_core"):
                taken = {alias.name for alias in node.names} & {"reconstruct", "load_prior", "zero_filled"}
                assert not taken, f"{name} takes {taken}"
