"""On PYTHONPATH, with SABOTAGE set: a chosen process is sabotaged from its start.

SABOTAGE="stages.train STOP os.rename step-00000020.json 1"    the process that runs this module; see hook.py
"""

import os
import sys

from hook import sabotage

if "SABOTAGE" in os.environ:
    module, *arranged = os.environ["SABOTAGE"].split()
    if module in sys.orig_argv:
        sabotage(*arranged)
