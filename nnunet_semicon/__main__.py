"""``python -m nnunet_semicon`` is the ``semicon`` command."""

import sys

from nnunet_semicon.cli.main import main

sys.exit(main())
