from __future__ import annotations

import json
import signal

from gptoss_dist.runtime.cause import Cause


def test_causes_survive_the_wire():
    for cause in (Cause("failed", 3, "läuft nicht", 2), Cause.vanished(1), Cause.stopped(0, signal.SIGTERM)):
        assert Cause.from_dict(json.loads(json.dumps(cause.to_dict()))) == cause


def test_exit_statuses():
    assert Cause.vanished(1).status == 1
    assert Cause.stopped(0, signal.SIGINT).status == 130
    assert Cause.stopped(0, signal.SIGTERM).status == 143
