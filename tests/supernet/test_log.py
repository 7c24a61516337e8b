import time

import pytest

from hwnas.supernet.log import TrainLog


def test_sessions_follow_each_other_whatever_the_clock_says(tmp_path, monkeypatch):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for session, now in enumerate((1_700_000_005.0, 1_700_000_000.0, 1_700_000_000.5, 1_700_000_001.0)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        log = TrainLog(tmp_path, 2 * session)
        for step in (1, 2, 3):  # the third was no checkpoint's
            log.write(2 * session + step, {"loss": session})
        log.close()
        (written,) = (path for path in tmp_path.iterdir() if ".container." not in path.name)
        written.rename(tmp_path / f"events.out.tfevents.{int(now)}.container.7.0")  # whose processes all have one number
    accumulator = reading.EventAccumulator(str(tmp_path))
    accumulator.Reload()
    found = [(record.step, record.value) for record in accumulator.Scalars("loss")]
    assert found == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3), (8, 3), (9, 3)]
