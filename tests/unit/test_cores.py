"""On how many cores batches are computed, on clocks that the tests turn."""

from __future__ import annotations

import pytest

from sensevoiced.engine.cores import Cores


class Machine:
    """A machine with two clocks, and the number of threads that was set last."""

    def __init__(self):
        self.now = self.cpu = 0.0
        self.threads = None

    def set(self, threads):
        self.threads = threads

    def cores(self, most=2, **kwargs):
        return Cores(most, **kwargs, clock=lambda: self.now, cpu_clock=lambda: self.cpu, set_threads=self.set)

    def run(self, cores, *, lost=0.0, seconds=1.0, slowed=None):
        """Run a batch that on all threads goes without `lost` cores; give the threads it ran on.

        What goes without takes `slowed` times as long, three times unless said otherwise.
        """
        with cores.batch(100):
            threads = self.threads
            lost = lost if threads == cores.most else 0.0
            seconds *= (slowed or 3.0) if lost > 0.25 else 1.0
            self.now += seconds
            self.cpu += seconds * (threads - lost)
        return threads

    def free(self, **kwargs):
        """Give cores that have run once with nobody beside them."""
        cores = self.cores(**kwargs)
        self.run(cores)
        return cores


@pytest.fixture
def machine(monkeypatch):
    """A machine where threads spin."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    return Machine()


def test_all_cores_are_used_while_they_are_free(machine):
    """Nothing is taken back for the little that is always lost."""
    cores = machine.free()
    assert [machine.run(cores, lost=0.1) for _ in range(5)] == [2] * 5


def test_one_crowded_batch_changes_nothing_two_in_a_row_do(machine):
    """A child that starts is over soon; a program that stays is given its core."""
    cores = machine.free()
    assert [machine.run(cores, lost=lost) for lost in (0.5, 0.0, 0.5, 0.5, 0.0)] == [2, 2, 2, 2, 1]


def test_who_is_hardly_slowed_keeps_all_cores(machine):
    """A neighbour that takes half a core and costs a fifth of the speed is better borne than avoided."""
    cores = machine.free()
    assert {machine.run(cores, lost=0.5, slowed=1.2) for _ in range(9)} == {2}


def test_a_machine_that_was_never_faster_keeps_all_cores(machine):
    """Where every batch goes without, nothing says that fewer threads would do better."""
    cores = machine.cores()
    assert {machine.run(cores, lost=0.5) for _ in range(9)} == {2}


def test_all_cores_are_tried_again_and_less_and_less_often(machine):
    """After half a second, then one, two, four: while the company stays, little time is lost on trying."""
    cores = machine.free()
    ran = [machine.run(cores, lost=0.5) for _ in range(14)]
    assert ran == [2, 2, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 2]


def test_free_cores_are_forgiven_at_once(machine):
    """One batch with all its time, and the next company is met as the first was."""
    cores = machine.free()
    for lost in (0.5, 0.5, 0.0, 0.0, 0.0):
        machine.run(cores, lost=lost)
    assert [machine.run(cores, lost=lost) for lost in (0.5, 0.5, 0.0)] == [2, 2, 1]


def test_as_many_threads_are_given_up_as_there_were_others(machine):
    """Sixteen cores beside two and a half busy programs: thirteen are kept."""
    cores = machine.free(most=16)
    assert [machine.run(cores, lost=2.5) for _ in range(3)] == [16, 16, 13]


def test_one_thread_is_always_left(machine):
    """However crowded: somebody has to do the work."""
    cores = machine.free()
    assert [machine.run(cores, lost=1.9) for _ in range(3)] == [2, 2, 1]


def test_short_batches_teach_nothing(machine):
    """In a few milliseconds the kernel has not shared anything out yet."""
    cores = machine.free()
    assert {machine.run(cores, lost=1.0, seconds=0.01) for _ in range(9)} == {2}


def test_a_small_model_is_judged_by_its_short_batches(machine):
    """Batches of milliseconds on a free machine are what a crowded one of a second is compared with."""
    cores = machine.cores()
    machine.run(cores, seconds=0.01)
    assert [machine.run(cores, lost=0.5, seconds=0.1) for _ in range(3)] == [2, 2, 1]


def test_sleeping_threads_teach_nothing(machine, monkeypatch):
    """Where a user lets OpenMP's threads sleep, time that was not used was not wanted."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    cores = machine.free()
    assert {machine.run(cores, lost=0.6) for _ in range(9)} == {2}


def test_batches_on_a_gpu_teach_nothing(machine):
    """The processor's time says nothing about work that is done elsewhere."""
    cores = machine.free(learns=False)
    assert {machine.run(cores, lost=1.9) for _ in range(9)} == {2}


def test_a_batch_that_fails_is_counted_too_and_its_error_passes(machine):
    """An exception goes through, and the clocks are read all the same."""
    cores = machine.free()

    def fail():
        with cores.batch(100):
            machine.now += 3.0
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
    assert machine.run(cores) == 1
