# SPDX-License-Identifier: Apache-2.0
import pytest

from verl.utils.timing import StageTimer


def test_same_name_adds_up_and_an_error_is_timed_too() -> None:
    timer = StageTimer()
    with timer("gen"):
        pass
    first = timer.seconds["gen"]
    with pytest.raises(RuntimeError, match="stage broke"), timer("gen"):
        raise RuntimeError("stage broke")
    assert timer.seconds["gen"] > first > 0
    timer.add("reward", 2.0)
    timer.add("reward", 1.5)
    assert timer.as_metrics()["timing_s/reward"] == 3.5
