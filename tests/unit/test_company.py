"""Who rides with whom: a user with much to do does not lengthen the batch of one with little."""

from __future__ import annotations

from dataclasses import dataclass

from sensevoiced.engine.turns import Turns

NO_CAP = 10**9
HEAVY, LIGHT, OTHER = 1, 2, 3


@dataclass(frozen=True, eq=False)
class Item:
    owner: int
    job: int
    frames: int = 50


def owners(turns, frames=256):
    """Whose utterances are in the next batch."""
    return [item.owner for item in turns.take(utterances=64, frames=frames, attention=NO_CAP)]


def filled(*items):
    """Turns with these items."""
    turns = Turns()
    for item in items:
        turns.put(item)
    return turns


def test_a_newcomer_among_a_crowd_of_anothers_jobs_has_a_batch_to_itself():
    """It lasts as long as on an idle machine; the crowd's goes on in the next one."""
    turns = filled(*[Item(HEAVY, job) for job in range(100)])
    assert owners(turns) == [HEAVY] * 5
    turns.put(Item(LIGHT, 1000))
    assert owners(turns) == [LIGHT]
    assert owners(turns) == [HEAVY] * 5


def test_users_with_little_to_do_share_a_batch():
    """What two users want fits into one batch, and is one."""
    turns = filled(*[Item(owner, owner) for owner in (LIGHT, OTHER)])
    assert owners(turns) == [LIGHT, OTHER]


def test_users_with_much_to_do_ride_together():
    """Nobody is spared anything by a smaller batch there."""
    turns = filled(*[Item(owner, 100 * owner + job) for owner in (HEAVY, OTHER) for job in range(20)])
    assert owners(turns) == [HEAVY, OTHER, HEAVY, OTHER, HEAVY]


def test_what_is_dropped_is_not_counted():
    """A user whose jobs are cancelled down to one is somebody with little to do."""
    items = [Item(HEAVY, job) for job in range(100)]
    turns = filled(*items, Item(LIGHT, 1000))
    for item in items[1:]:
        turns.drop(item)
    assert owners(turns) == [HEAVY, LIGHT]
    assert not turns
