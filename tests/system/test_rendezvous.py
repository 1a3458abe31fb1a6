"""The identity of a rank's process: a lost process is killed, another one with its process id is not."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt2lab.system import rendezvous
from gpt2lab.system.rendezvous import RankProcess


@pytest.mark.skipif(sys.platform != "linux", reason="no Linux: start times are read from /proc")
def test_only_the_very_process_is_killed():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        lost = RankProcess(process.pid, socket.gethostname(), rendezvous._start_time(process.pid))
        for other in (lost._replace(start_time="1"), lost._replace(host="elsewhere"), lost._replace(start_time="-")):
            other.kill_if_local()
        assert process.poll() is None
        lost.kill_if_local()
        assert process.wait() == -9
    lost.kill_if_local()  # it is gone: nothing happens


def test_all_ranks_get_the_same_generation(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with ThreadPoolExecutor(3) as ranks:
        generations = list(ranks.map(lambda rank: rendezvous.rendezvous(rank, 3, 300), range(3)))
    assert generations[0] == generations[1] == generations[2]
    assert (len(generations[0].processes), generations[0].store_rank) == (3, 0)
