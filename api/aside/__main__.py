"""The child: reads what is asked from its standard input, answers on its standard output."""

from __future__ import annotations

import json
import resource
import sys

from api.aside.process import OUT_OF_MEMORY
from api.aside.tasks import TASKS
from engine.spec.errors import EngineError
from policies.errors import PolicyInputError
from tuner.spec.errors import TunerError


def main() -> None:
    """Answer one question within the limits that came with it."""
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (asked["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (asked["processor_s"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = TASKS[asked["task"]](asked["question"])
    except (EngineError, PolicyInputError, TunerError) as error:
        answer = {"error": str(error)}
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    json.dump(answer, sys.stdout, allow_nan=False)


if __name__ == "__main__":
    main()
