from .callbacks import Callback as Callback
from .comparison.compare import compare as compare
from .comparison.compare import compare_runs as compare_runs
from .config import RunConfig as RunConfig
from .methods import METHODS as METHODS
from .methods import Method as Method
from .profiling.profile import Profile as Profile
from .profiling.profile import profile as profile
from .reporting.exporting import export_model as export_model
from .reporting.loading import load_exported as load_exported
from .reporting.page import write_report as write_report
from .run.app import make_server_app as make_server_app
from .run.client_app import make_client_app as make_client_app
from .run.run import RunResult as RunResult
from .run.simulation import simulate as simulate
from .task import Samples as Samples
from .task import SplitTask as SplitTask
from .tasks import TASKS as TASKS
from .tasks import load_task as load_task

__all__: list[str]
__version__: str
