"""What a sequence leaves behind whose logits were no numbers."""

from __future__ import annotations

import numpy as np
import pytest

from engine.spec.steps import NO_TOKEN
from tests.engine.scheduler.test_scheduler import make_request, make_scheduler


@pytest.mark.parametrize("is_ahead", [False, True])
def test_nobody_goes_on_from_the_blocks_of_a_prompt_that_gave_no_number(is_ahead: bool) -> None:
    scheduler = make_scheduler(keeps_prefixes=True)
    scheduler.add(make_request("poisoned", prompt_len=13, max_tokens=4))
    steps = [scheduler.schedule()]
    if is_ahead:
        steps.append(scheduler.schedule_ahead())
    for step in steps:
        assert step is not None
        scheduler.commit(step, np.array([NO_TOKEN], np.int32))
    scheduler.check_integrity()
    assert scheduler.is_idle
    scheduler.add(make_request("other", prompt_len=13, max_tokens=4))
    scheduler.schedule()
    assert scheduler.counts.prefix_hits == 0
