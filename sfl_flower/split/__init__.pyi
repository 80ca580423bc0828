from .called import (
    called_layers as called_layers,
)
from .checks.checks import (
    Problem as Problem,
)
from .checks.checks import (
    check_zeroth_order as check_zeroth_order,
)
from .checks.checks import (
    freeze_batch_norm as freeze_batch_norm,
)
from .checks.checks import (
    problems as problems,
)
from .cutting import (
    Halves as Halves,
)
from .cutting import (
    cut as cut,
)
from .cutting import (
    every_cut as every_cut,
)
from .cutting import (
    legal_cuts as legal_cuts,
)
from .graph.half import (
    Half as Half,
)
from .heads import (
    HEADS as HEADS,
)
from .heads import (
    make_head as make_head,
)
from .heads import (
    own_init as own_init,
)
from .parameters.batch_norm import (
    moving_statistics as moving_statistics,
)
from .parameters.directions import (
    GradientMoments as GradientMoments,
)
from .parameters.directions import (
    fit_subspace as fit_subspace,
)
from .parameters.directions import (
    gradient_moments as gradient_moments,
)
from .parameters.directions import (
    input_moments as input_moments,
)
from .parameters.directions import (
    plain_gradients as plain_gradients,
)
from .parameters.directions import (
    set_directions as set_directions,
)
from .parameters.directions import (
    sketch_moments as sketch_moments,
)
from .parameters.directions import (
    sketched_moments as sketched_moments,
)
from .parameters.directions import (
    with_gradients as with_gradients,
)
from .parameters.energy import (
    choose_subspace as choose_subspace,
)
from .parameters.energy import (
    held_energy as held_energy,
)
from .parameters.quantised import (
    dequantised as dequantised,
)
from .parameters.quantised import (
    held_bytes as held_bytes,
)
from .parameters.quantised import (
    load_dequantised as load_dequantised,
)
from .parameters.quantised import (
    parts as parts,
)
from .parameters.quantised import (
    stay_frozen as stay_frozen,
)
from .parameters.subspace import (
    Auto as Auto,
)
from .parameters.subspace import (
    Subspace as Subspace,
)
from .parameters.subspace import (
    plain_weights as plain_weights,
)
from .parameters.subspace import (
    read_subspace as read_subspace,
)
from .parameters.trained import (
    TRAINED as TRAINED,
)
from .parameters.trained import (
    check_trained as check_trained,
)
from .parameters.trained import (
    restrict as restrict,
)
from .parameters.travelling import (
    base_digest as base_digest,
)
from .parameters.travelling import (
    base_state as base_state,
)
from .parameters.travelling import (
    buffers_of as buffers_of,
)
from .parameters.travelling import (
    carried_state as carried_state,
)
from .parameters.travelling import (
    load_carried as load_carried,
)
from .parameters.travelling import (
    load_travelling as load_travelling,
)
from .parameters.travelling import (
    travelling_state as travelling_state,
)
from .prefix import (
    Parted as Parted,
)
from .prefix import (
    parted as parted,
)
from .tails import (
    Tailed as Tailed,
)
from .tails import (
    adopt as adopt,
)
from .tails import (
    cut_tail as cut_tail,
)
from .whole import (
    Whole as Whole,
)
