"""What holds for every file: no global generator, no pickle, no one's machine, small files."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES, MAX_LINES_OF_A_BENCHMARK = 350, 400
CODE = sorted(
    path
    for name in ("sfl_flower", "benchmarks", "examples")
    for path in (ROOT / name).rglob("*.py")
)
TEMPLATES = ROOT / "sfl_flower" / "templates"
"""What `sfl new` copies: apps, and no modules of the package."""
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Calls that draw from, or set, a generator that the whole process shares.
GLOBAL_CALLS = re.compile(
    r"^(?:torch(?:\.random|\.cuda)?\.(?:manual_seed(?:_all)?|seed(?:_all)?|set_rng_state(?:_all)?)"
    r"|(?:np|numpy)\.random\.(?!default_rng$|Generator$|Philox$|PCG64$|SeedSequence$|SFC64$)\w+"
    r"|random\.(?!Random$|SystemRandom$)\w+)$"
)
PICKLE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLE_CALLS = {"torch.load", "torch.save", "torch.jit.load"}

# Split, so that this file does not contain what it looks for.
HOSTS = re.compile(
    "|".join(
        [
            r"pypi\." + "org",
            "python" + r"hosted\." + "org",
            "index-" + r"url\s*=",
            r"registry\." + "npmjs",
            "--find-" + r"links\s+\S",
        ]
    )
)
MACHINE_PATHS = re.compile(r"(?<![\w.$}])/(?:home|root|work|Users|opt)/[\w.-]+")


def dotted(node: ast.expr) -> str:
    """Return ``a.b.c`` for a chain of names, an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (origin := dotted(node.value)):
        return f"{origin}.{node.attr}"
    return ""


def offences(source: str) -> list[str]:
    """Return the global generators and the pickle that a source file uses."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in PICKLE_MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if GLOBAL_CALLS.match(name) or name in PICKLE_CALLS]
            found += [node.module] if node.module.split(".")[0] in PICKLE_MODULES else []
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            allow_pickle = any(
                k.arg == "allow_pickle"
                and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in node.keywords
            )
            if GLOBAL_CALLS.match(name) or name in PICKLE_CALLS or allow_pickle:
                found.append(name)
    return found


def tracked() -> list[Path]:
    """Return the files of the repository that are text."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:4096]]


def name_of(path: Path) -> str:
    """Return a path as the repository names it."""
    return path.relative_to(ROOT).as_posix()


ALLOWED = {
    # What a user's own code draws from is seeded there and put back; nothing of the package draws.
    "sfl_flower/data/seeding.py": {
        *("random.getstate", "random.seed", "random.setstate"),
        *("np.random.get_state", "np.random.seed", "np.random.set_state"),
    },
    # A process of others' code alone, which draws from them.
    "benchmarks/theirs.py": {"random.seed", "np.random.seed", "torch.manual_seed"},
    # One file, known by its SHA-256, and tensors alone of it (`weights_only`).
    "sfl_flower/tasks/efficientnet.py": {"torch.load"},
}


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_no_global_generator_and_no_pickle(path: Path) -> None:
    found = offences(path.read_text(encoding="utf-8"))
    assert set(found) <= ALLOWED.get(name_of(path), set())


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.manual_seed(0)",
        "import torch\ntorch.random.manual_seed(0)",
        "import torch\ntorch.load('x')",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nnp.random.rand(3)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import random\nrandom.shuffle([1])",
        "from random import shuffle",
        "from torch import load",
        "import pickle",
        "def f():\n    from cloudpickle import loads",
    ],
)
def test_an_offence_is_found(source: str) -> None:
    assert offences(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.random.default_rng(0)",
        "import numpy as np\nnp.random.Generator(np.random.Philox(key=1))",
        "import random\nrandom.Random(0).shuffle([1])",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import torch\ntorch.Generator().manual_seed(0)",
    ],
)
def test_a_generator_of_ones_own_passes(source: str) -> None:
    assert offences(source) == []


def test_one_name_alone_in_the_temporary_folder_can_be_guessed() -> None:
    """That of `state_root`, which is refused where somebody else made it; all others are drawn."""
    guessed = re.compile(r"gettempdir|mktemp\(|[\"']/(?:var/)?tmp/|[\"']/dev/shm")
    found = [name_of(path) for path in CODE if guessed.search(path.read_text(encoding="utf-8"))]
    assert found == ["sfl_flower/node/directory.py"]


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_module_is_small_and_says_what_it_is(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    most = MAX_LINES_OF_A_BENCHMARK if path.parent.name == "benchmarks" else MAX_LINES
    assert len(source.splitlines()) <= most
    assert path.name.startswith("_") or ast.get_docstring(ast.parse(source))


def test_no_host_and_no_path_of_one_machine() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:120]}"
        for path in tracked()
        if path.name != "LICENSE"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if HOSTS.search(line) or MACHINE_PATHS.search(line)
    ]
    assert found == []


def test_every_import_is_a_declared_dependency() -> None:
    declared = {
        re.split(r"[\s\[<>=!~;@]", entry, maxsplit=1)[0].lower().replace("_", "-")
        for entry in (
            *PROJECT["project"]["dependencies"],
            *PROJECT["project"]["optional-dependencies"]["attack"],
            *PROJECT["project"]["optional-dependencies"]["dp"],
            *PROJECT["project"]["optional-dependencies"]["language"],
            *PROJECT["project"]["optional-dependencies"]["onnx"],
            *PROJECT["project"]["optional-dependencies"]["secure"],
            *PROJECT["project"]["optional-dependencies"]["tune"],
        )
    }
    providers = packages_distributions()
    undeclared: dict[str, set[str]] = {}
    for path in CODE:
        if ROOT / "sfl_flower" not in path.parents or TEMPLATES in path.parents:
            continue
        for module in imported_roots(path):
            if module in sys.stdlib_module_names or module == "sfl_flower":
                continue
            packages = {name.lower().replace("_", "-") for name in providers.get(module, [module])}
            if not packages & declared:
                undeclared.setdefault(module, set()).add(name_of(path))
    assert undeclared == {}


def imported_roots(path: Path) -> set[str]:
    """Return the top-level packages that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_bundle_needs_nothing_installed() -> None:
    """``flwr run`` asks uv for the bundle's dependencies; the answer must stay 'none'."""
    (entry,) = PROJECT["tool"]["uv"]["dependency-metadata"]
    assert entry["requires-dist"] == []
    assert (entry["name"], entry["version"]) == (
        PROJECT["project"]["name"],
        PROJECT["project"]["version"],
    )


def test_a_checkout_has_its_dependencies() -> None:
    """In a checkout uv.toml hides the entry above; the bundle must not carry uv.toml."""
    lines = (ROOT / "uv.toml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    assert PROJECT["tool"]["flwr"]["app"]["fab-include"] == [
        "sfl_flower/**/*.py",
        "sfl_flower/presets/*.toml",
    ]


@pytest.mark.flower
def test_the_bundle_is_small_and_holds_the_package(tmp_path: Path) -> None:
    """Flower refuses a bundle over 10 MB; environments and runs must never get into it."""
    flwr_build = pytest.importorskip("flwr.cli.build")  # not public: where it is, it is checked
    copy = tmp_path / "app"
    for path in tracked():
        target = copy / name_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name in (".venv/lib/big.py", ".venv-1.26/lib/big.py", "runs/1/config.json"):
        stray = copy / name
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("x = 1\n")
    bundle = flwr_build.build_fab_from_disk(copy)
    archive = tmp_path / "app.zip"
    archive.write_bytes(bundle)
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    held = {
        p.relative_to(tmp_path / "unpacked").as_posix() for p in (tmp_path / "unpacked").rglob("*")
    }
    package = {
        name_of(p)
        for p in tracked()
        if p.suffix in (".py", ".toml")
        and ROOT / "sfl_flower" in p.parents
        and TEMPLATES not in p.parents
    }
    assert "sfl_flower/presets/ho_sfl_resnet18_cifar10.toml" in package
    with zipfile.ZipFile(archive) as read:
        is_packed = any(each.compress_size < each.file_size for each in read.infolist())
    # Older Flower takes tests and pages along, uncompressed.
    assert len(bundle) < (4 if is_packed else 8) * 1024 * 1024
    assert package <= held
    assert not [name for name in held if name.startswith((".venv", "runs")) or name == "uv.lock"]


def test_b7_nothing_refers_to_a_document_that_is_not_here() -> None:
    missing = []
    for path in tracked():
        text = path.read_text(encoding="utf-8")
        # A numbered section of a page: none of the pages has numbers.
        missing += re.findall(r"\w+\.md`*,? \d+\.\d+", text)
        if path.suffix == ".md":
            for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
                if not (path.parent / target).exists():
                    missing.append(f"{name_of(path)}: {target}")
    assert missing == []


def test_b9_what_the_package_offers_is_used_in_it_or_listed_by_its_room() -> None:
    sources = {
        path: path.read_text(encoding="utf-8") for path in (ROOT / "sfl_flower").rglob("*.py")
    }
    words = {path: set(re.findall(r"\w+", text)) for path, text in sources.items()}
    idle = []
    for path, text in sources.items():
        for node in ast.parse(text).body:
            if path.name == "__init__.py" or not isinstance(node, ast.Assign):
                continue
            if getattr(node.targets[0], "id", "") == "__all__":
                for name in ast.literal_eval(node.value):
                    used = any(name in words[other] for other in sources if other != path)
                    if not used and len(re.findall(rf"\b{name}\b", text)) <= 2:
                        idle.append(f"{name_of(path)}: {name}")
    # What a user's own code calls.
    assert idle == ["sfl_flower/tasks/own_text.py: text_task"]


def test_b10_docstrings_of_the_engine_give_types() -> None:
    untyped = []
    for path in sorted((ROOT / "sfl_flower" / "zo").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            doc = ast.get_docstring(node) or ""
            for section in re.findall(r"Parameters\n-+\n(.*?)(?:\n\n|\Z)", doc, flags=re.DOTALL):
                heads = [line for line in section.splitlines() if line and line[0] != " "]
                untyped += [f"{name_of(path)}: {line}" for line in heads if " : " not in line]
    assert untyped == []
