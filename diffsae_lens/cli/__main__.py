"""The command as `python -m diffsae_lens.cli`."""

import sys

from diffsae_lens.cli import main

sys.exit(main())
