from ._aligned import AlignedDictionaries as AlignedDictionaries
from ._aligned import aligned as aligned
from ._crosscoder import CrosscoderSAE as CrosscoderSAE
from ._crosscoder import CrosscoderSAEConfig as CrosscoderSAEConfig
from ._crosscoder_training import (
    BatchTopKCrosscoderTrainingSAE as BatchTopKCrosscoderTrainingSAE,
)
from ._crosscoder_training import (
    BatchTopKCrosscoderTrainingSAEConfig as BatchTopKCrosscoderTrainingSAEConfig,
)
from ._crosscoder_training import (
    JumpReLUCrosscoderTrainingSAE as JumpReLUCrosscoderTrainingSAE,
)
from ._crosscoder_training import (
    JumpReLUCrosscoderTrainingSAEConfig as JumpReLUCrosscoderTrainingSAEConfig,
)
from ._crosscoder_training import (
    L1CrosscoderTrainingSAE as L1CrosscoderTrainingSAE,
)
from ._crosscoder_training import (
    L1CrosscoderTrainingSAEConfig as L1CrosscoderTrainingSAEConfig,
)
from ._delta import (
    DeltaCrosscoderTrainingSAE as DeltaCrosscoderTrainingSAE,
)
from ._delta import (
    DeltaCrosscoderTrainingSAEConfig as DeltaCrosscoderTrainingSAEConfig,
)
from ._fits import check_fits as check_fits
from ._foreign._load_foreign import load_foreign as load_foreign
from ._load import load as load
from ._paper import (
    PaperCrosscoderTrainingSAE as PaperCrosscoderTrainingSAE,
)
from ._paper import (
    PaperCrosscoderTrainingSAEConfig as PaperCrosscoderTrainingSAEConfig,
)
from ._paper import PaperDiffSAETrainingSAE as PaperDiffSAETrainingSAE
from ._paper import (
    PaperDiffSAETrainingSAEConfig as PaperDiffSAETrainingSAEConfig,
)
from ._publish import export_as_jumprelu as export_as_jumprelu
from ._publish import upload as upload
from ._record import DictionaryRecord as DictionaryRecord
from ._topk import SparseBatchTopKTrainingSAE as SparseBatchTopKTrainingSAE
from ._topk import (
    SparseBatchTopKTrainingSAEConfig as SparseBatchTopKTrainingSAEConfig,
)
from ._topk import SparseTopKTrainingSAE as SparseTopKTrainingSAE
from ._topk import (
    SparseTopKTrainingSAEConfig as SparseTopKTrainingSAEConfig,
)
