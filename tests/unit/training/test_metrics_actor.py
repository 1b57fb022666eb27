"""Records that the driver receives once each, also from an actor that lost its state."""

from typing import Any

from rayfuse.training.metrics_actor import MetricsActor, RecordReceiver, Reply, Unconfirmed, Update


def steps(*numbers: int) -> list[dict[str, Any]]:
    return [{"step": number} for number in numbers]


def test_records_are_pulled_until_they_are_confirmed() -> None:
    actor = MetricsActor()
    assert actor.push("rank 0", Unconfirmed(0, steps(1, 2))) == Reply(0, False)
    actor.set_progress({"epoch": 1})
    expected = Update({"rank 0": Unconfirmed(0, steps(1, 2))}, {"epoch": 1}, None)
    assert actor.pull({}) == expected
    assert actor.pull({}) == expected
    assert actor.pull({"rank 0": 1}).records == {"rank 0": Unconfirmed(1, steps(2))}
    assert actor.push("rank 0", Unconfirmed(1, steps(2, 3))) == Reply(1, False)
    assert actor.pull({"rank 0": 2}).records == {"rank 0": Unconfirmed(2, steps(3))}
    assert actor.pull({"rank 0": 3}).records == {"rank 0": Unconfirmed(3, [])}


def test_an_actor_that_restarted_confirms_nothing_before_the_driver_does() -> None:
    actor, receiver = MetricsActor(), RecordReceiver()
    actor.push("rank 0", Unconfirmed(0, steps(1, 2)))
    assert receiver.receive(actor.pull(receiver.confirmed).records) == steps(1, 2)
    actor = MetricsActor()
    assert receiver.receive(actor.pull({}).records) == []
    actor = MetricsActor()
    assert actor.push("rank 0", Unconfirmed(0, steps(1, 2, 3))) == Reply(0, False)
    assert receiver.receive(actor.pull(receiver.confirmed).records) == steps(3)
    assert actor.push("rank 0", Unconfirmed(0, steps(1, 2, 3, 4))) == Reply(2, False)
    assert receiver.receive(actor.pull(receiver.confirmed).records) == steps(4)


def test_senders_are_numbered_apart() -> None:
    receiver = RecordReceiver()
    assert receiver.receive({"a": Unconfirmed(0, steps(1))}) == steps(1)
    assert receiver.receive({"a": Unconfirmed(0, steps(1)), "b": Unconfirmed(0, steps(1))}) == steps(1)
    assert receiver.confirmed == {"a": 1, "b": 1}


def test_senders_learn_of_a_stop() -> None:
    actor = MetricsActor()
    actor.request_stop()
    assert actor.push("rank 0", Unconfirmed(0, [])) == Reply(0, True)
