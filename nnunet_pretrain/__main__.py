"""`python -m nnunet_pretrain` is the command `nnunet_pretrain`."""

import sys

from nnunet_pretrain.cli import main

sys.exit(main())
