"""Dictionaries: Diff-SAEs and crosscoders, each a SAELens training class with its inference form.

Importing this package registers them with SAELens; `import diffsae_lens` sees to it.
"""

import sae_lens as sae_lens  # first: its import is what triggers our registration

from diffsae_lens.saes.crosscoder import CrosscoderSAE as CrosscoderSAE
from diffsae_lens.saes.crosscoder import CrosscoderSAEConfig as CrosscoderSAEConfig
from diffsae_lens.saes.crosscoder_training import (
    BatchTopKCrosscoderTrainingSAE as BatchTopKCrosscoderTrainingSAE,
)
from diffsae_lens.saes.crosscoder_training import (
    BatchTopKCrosscoderTrainingSAEConfig as BatchTopKCrosscoderTrainingSAEConfig,
)
from diffsae_lens.saes.crosscoder_training import (
    JumpReLUCrosscoderTrainingSAE as JumpReLUCrosscoderTrainingSAE,
)
from diffsae_lens.saes.crosscoder_training import (
    JumpReLUCrosscoderTrainingSAEConfig as JumpReLUCrosscoderTrainingSAEConfig,
)
from diffsae_lens.saes.crosscoder_training import L1CrosscoderTrainingSAE as L1CrosscoderTrainingSAE
from diffsae_lens.saes.crosscoder_training import (
    L1CrosscoderTrainingSAEConfig as L1CrosscoderTrainingSAEConfig,
)
from diffsae_lens.saes.delta import DeltaCrosscoderTrainingSAE as DeltaCrosscoderTrainingSAE
from diffsae_lens.saes.delta import (
    DeltaCrosscoderTrainingSAEConfig as DeltaCrosscoderTrainingSAEConfig,
)
from diffsae_lens.saes.paper import PaperCrosscoderTrainingSAE as PaperCrosscoderTrainingSAE
from diffsae_lens.saes.paper import (
    PaperCrosscoderTrainingSAEConfig as PaperCrosscoderTrainingSAEConfig,
)
from diffsae_lens.saes.paper import PaperDiffSAETrainingSAE as PaperDiffSAETrainingSAE
from diffsae_lens.saes.paper import PaperDiffSAETrainingSAEConfig as PaperDiffSAETrainingSAEConfig
from diffsae_lens.saes.topk import SparseBatchTopKTrainingSAE as SparseBatchTopKTrainingSAE
from diffsae_lens.saes.topk import (
    SparseBatchTopKTrainingSAEConfig as SparseBatchTopKTrainingSAEConfig,
)
from diffsae_lens.saes.topk import SparseTopKTrainingSAE as SparseTopKTrainingSAE
from diffsae_lens.saes.topk import SparseTopKTrainingSAEConfig as SparseTopKTrainingSAEConfig
