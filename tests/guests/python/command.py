"""A program, as componentize-py makes a component of it: says its arguments, and does what its first one says.

write PATH TEXT writes a file, read PATH prints one, fail ends without success, raise ends by an exception.
"""

import json
import os
import random
import sys
import time

from componentize_py_types import Err
from wit_world import exports


class Run(exports.Run):
    """What the runtime calls."""

    def run(self):
        verb, *words = sys.argv[1:] or ["say"]
        if verb == "say":
            drawn = random.SystemRandom().getrandbits(64)
            print(json.dumps({"greeting": os.environ.get("GREETING"), "words": words, "drawn": drawn,
                              "year": time.gmtime().tm_year, "directory": os.environ.get("PWD")}))
        elif verb == "write":
            with open(words[0], "w", encoding="utf-8") as file:
                file.write(words[1])
        elif verb == "read":
            with open(words[0], encoding="utf-8") as file:
                print(file.read())
        elif verb == "fail":
            print("it failed", file=sys.stderr)
            raise Err(None)
        elif verb == "raise":
            raise ValueError("a mistake of the program")
        sys.stdout.flush()
