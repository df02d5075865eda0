"""Dictionaries: Diff-SAEs and crosscoders, each a SAELens training class with its inference form.

Importing this package registers them with SAELens, so that `SAE.load_from_disk` and the runners of
SAELens know them. `import diffsae_lens` does it where SAELens is imported already.
"""

from diffsae_lens.dictionaries._crosscoder import CrosscoderSAE as CrosscoderSAE
from diffsae_lens.dictionaries._crosscoder import CrosscoderSAEConfig as CrosscoderSAEConfig
from diffsae_lens.dictionaries._crosscoder_training import (
    BatchTopKCrosscoderTrainingSAE as BatchTopKCrosscoderTrainingSAE,
)
from diffsae_lens.dictionaries._crosscoder_training import (
    BatchTopKCrosscoderTrainingSAEConfig as BatchTopKCrosscoderTrainingSAEConfig,
)
from diffsae_lens.dictionaries._crosscoder_training import (
    JumpReLUCrosscoderTrainingSAE as JumpReLUCrosscoderTrainingSAE,
)
from diffsae_lens.dictionaries._crosscoder_training import (
    JumpReLUCrosscoderTrainingSAEConfig as JumpReLUCrosscoderTrainingSAEConfig,
)
from diffsae_lens.dictionaries._crosscoder_training import (
    L1CrosscoderTrainingSAE as L1CrosscoderTrainingSAE,
)
from diffsae_lens.dictionaries._crosscoder_training import (
    L1CrosscoderTrainingSAEConfig as L1CrosscoderTrainingSAEConfig,
)
from diffsae_lens.dictionaries._delta import (
    DeltaCrosscoderTrainingSAE as DeltaCrosscoderTrainingSAE,
)
from diffsae_lens.dictionaries._delta import (
    DeltaCrosscoderTrainingSAEConfig as DeltaCrosscoderTrainingSAEConfig,
)
from diffsae_lens.dictionaries._fits import check_fits as check_fits
from diffsae_lens.dictionaries._load import load as load
from diffsae_lens.dictionaries._paper import (
    PaperCrosscoderTrainingSAE as PaperCrosscoderTrainingSAE,
)
from diffsae_lens.dictionaries._paper import (
    PaperCrosscoderTrainingSAEConfig as PaperCrosscoderTrainingSAEConfig,
)
from diffsae_lens.dictionaries._paper import PaperDiffSAETrainingSAE as PaperDiffSAETrainingSAE
from diffsae_lens.dictionaries._paper import (
    PaperDiffSAETrainingSAEConfig as PaperDiffSAETrainingSAEConfig,
)
from diffsae_lens.dictionaries._publish import export_as_jumprelu as export_as_jumprelu
from diffsae_lens.dictionaries._publish import upload as upload
from diffsae_lens.dictionaries._record import DictionaryRecord as DictionaryRecord
from diffsae_lens.dictionaries._topk import SparseBatchTopKTrainingSAE as SparseBatchTopKTrainingSAE
from diffsae_lens.dictionaries._topk import (
    SparseBatchTopKTrainingSAEConfig as SparseBatchTopKTrainingSAEConfig,
)
from diffsae_lens.dictionaries._topk import SparseTopKTrainingSAE as SparseTopKTrainingSAE
from diffsae_lens.dictionaries._topk import (
    SparseTopKTrainingSAEConfig as SparseTopKTrainingSAEConfig,
)
