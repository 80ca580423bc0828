"""What every test stands on: a quiet Flower, one thread, no trace outside its own directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Read when Flower and Ray are imported, so set before any test module is.
for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(_name, _value)

import hypothesis  # noqa: E402
import torch  # noqa: E402

from tests.processes import end  # noqa: E402

# Examples are as many on a slow or busy machine; how long they take decides no test.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

REPOSITORY = Path(__file__).resolve().parents[1]

StartProcess = Callable[..., "subprocess.Popen[str]"]


def _data_dir() -> Path | None:
    """Return the directory with the downloaded data sets, None where there is none."""
    named = os.environ.get("SFL_DATA_DIR")
    candidates = (
        [Path(named)] if named else [REPOSITORY / "data", REPOSITORY.parent / "shared/data"]
    )
    return next((path.resolve() for path in candidates if path.is_dir()), None)


if (_found := _data_dir()) is not None:
    os.environ["SFL_DATA_DIR"] = str(_found)


def pytest_xdist_auto_num_workers() -> int:
    """Return a worker a core, and one that starts Flower and mostly waits for its processes."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 2


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what starts Flower in one worker of ``-n auto --dist loadgroup``.

    Ports never clash, and no simulation joins a Ray cluster that another test started.
    """
    for item in items:
        if _starts_flower(item):
            item.add_marker(pytest.mark.xdist_group("flower"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a pytest-xdist that groups nothing with this pytest, as 3.8 does with 9.2."""
    if hasattr(session.config, "workerinput") and session.config.getvalue("loadgroup"):
        for item in session.items:
            if _starts_flower(item) and not item.nodeid.endswith("@flower"):
                raise pytest.UsageError(f"pytest-xdist leaves {item.nodeid} out of its group.")


def _starts_flower(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("simulation", "deployment"))


@pytest.fixture(autouse=True, scope="session")
def state_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what nodes store on disk apart from every other test process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFL_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread: results may depend on the count, and the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_weights(one_thread: None) -> Iterator[None]:
    """Draw what a test leaves to torch's global generator, as initial weights, the same each time.

    Otherwise they would depend on the tests before it in the same process.
    """
    from sfl_flower.data.seeding import seeded_torch  # after the variables above are set

    with seeded_torch("test", 0):
        yield


@pytest.fixture
def sfl_data_dir() -> Path:
    """Directory with the data sets named in the user guide; the test is skipped without one."""
    found = _data_dir()
    if found is None:
        pytest.skip("needs downloaded data: set SFL_DATA_DIR to the directory that holds it")
    return found


@pytest.fixture
def fashion_mnist_file(sfl_data_dir: Path) -> Path:
    """Fashion-MNIST as one file; the test is skipped without it."""
    path = sfl_data_dir / "fashion_mnist.npz"
    if not path.is_file():
        pytest.skip(f"needs fashion_mnist.npz in SFL_DATA_DIR ({sfl_data_dir})")
    return path


@pytest.fixture
def flwr_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give Flower a home of the test's own (1.26.1 writes to HOME whatever FLWR_HOME says)."""
    home = tmp_path / "home"
    flower = home / ".flwr"
    flower.mkdir(parents=True)
    # uv keeps its cache: emptied, `flwr run` would fetch what it has.
    cache = os.environ.get("UV_CACHE_DIR") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uv"
    )
    monkeypatch.setenv("UV_CACHE_DIR", cache)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("FLWR_HOME", str(flower))
    # Flower starts its programs by name, so those of this environment come first.
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    return flower


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    """Start programs that end with the test, with everything they started themselves.

    ``start_process(*command, name="superlink", **popen)`` returns the ``Popen``; its output goes
    to ``<name>.log`` in the test's directory, and is shown when the test fails.
    """
    started: list[tuple[subprocess.Popen[str], Path]] = []

    def start(*command: str, name: str = "process", **options: object) -> subprocess.Popen[str]:
        log = tmp_path / f"{name}.log"
        with log.open("a") as output:
            process: subprocess.Popen[str] = subprocess.Popen(
                list(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # a group of its own, so that its children end with it
                **options,  # type: ignore[call-overload]
            )
        started.append((process, log))
        return process

    yield start
    for process, _ in reversed(started):
        end(process)
    for _, log in started:  # pytest shows it for a failed test only
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
