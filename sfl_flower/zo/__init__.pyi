from .clipping import (
    clip_scalars as clip_scalars,
)
from .coefficients import (
    StepRule as StepRule,
)
from .coefficients import (
    condition_guided as condition_guided,
)
from .coefficients import (
    condition_scalars as condition_scalars,
)
from .coefficients import (
    drawn_signs as drawn_signs,
)
from .coefficients import (
    step_coefficients as step_coefficients,
)
from .directions import (
    Direction as Direction,
)
from .directions import (
    Directions as Directions,
)
from .entry import (
    Entry as Entry,
)
from .estimators import (
    ESTIMATORS as ESTIMATORS,
)
from .guide import (
    Guide as Guide,
)
from .guide import (
    guided as guided,
)
from .header import (
    JournalHeader as JournalHeader,
)
from .header import (
    manifest_digest as manifest_digest,
)
from .header import (
    params_digest as params_digest,
)
from .journal import (
    Journal as Journal,
)
from .journal import (
    Tail as Tail,
)
from .journal import (
    tail_bytes as tail_bytes,
)
from .journal import (
    tail_ends as tail_ends,
)
from .keys import (
    SHARED_STREAM as SHARED_STREAM,
)
from .keys import (
    Key as Key,
)
from .keys import (
    client_stream as client_stream,
)
from .keys import (
    run_key as run_key,
)
from .keys import (
    step_keys as step_keys,
)
from .laws import (
    LAWS as LAWS,
)
from .optimizers import (
    OPTIMIZERS as OPTIMIZERS,
)
from .optimizers import (
    OptimizerSpec as OptimizerSpec,
)
from .probing import (
    Probing as Probing,
)
from .replica import (
    Replica as Replica,
)
from .scalars import (
    Sweep as Sweep,
)
from .scalars import (
    loss_scalars as loss_scalars,
)
from .scalars import (
    surrogate_scalars as surrogate_scalars,
)
from .scalars import (
    totals as totals,
)
from .spread import (
    SCALES as SCALES,
)
from .vector import (
    ParameterVector as ParameterVector,
)
from .vector import (
    trained_names as trained_names,
)
from .walk import (
    Walk as Walk,
)
