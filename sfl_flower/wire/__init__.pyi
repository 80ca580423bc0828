from .answer import (
    check_answer as check_answer,
)
from .common import (
    JoinReply as JoinReply,
)
from .common import (
    JoinRequest as JoinRequest,
)
from .common import (
    Setup as Setup,
)
from .common import (
    StaleReply as StaleReply,
)
from .common import (
    Sync as Sync,
)
from .common import (
    UnknownTerms as UnknownTerms,
)
from .common import (
    is_stale as is_stale,
)
from .common import (
    lacks_terms as lacks_terms,
)
from .ledger import (
    CATEGORIES as CATEGORIES,
)
from .ledger import (
    Ledger as Ledger,
)
from .ledger import (
    content_bytes as content_bytes,
)
from .message import (
    Reply as Reply,
)
from .message import (
    Request as Request,
)
from .reader import (
    Reader as Reader,
)
from .usage import (
    METERS as METERS,
)
from .usage import (
    NO_USAGE as NO_USAGE,
)
from .usage import (
    Usage as Usage,
)
from .weights import (
    pack_state as pack_state,
)
from .weights import (
    state_bytes as state_bytes,
)
from .weights import (
    unpack_state as unpack_state,
)
