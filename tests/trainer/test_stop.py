import os
import signal

import pytest

from trainer import stop
from trainer.stop import StopSignals


def test_a_second_int_counts_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 101.0, 104.9, 105.1])
    monkeypatch.setattr(stop.time, "monotonic", lambda: next(moments))
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as requests:
        assert not requests.asked()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
