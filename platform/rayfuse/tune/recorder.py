"""What Ray Tune tells of the trials, kept in their folders and in MLflow."""

import time
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from rayfuse.errors import NotReachable
from rayfuse.registry.journal import Journal
from rayfuse.registry.tracker import Tracker
from rayfuse.train.launch import explain
from rayfuse.tune.driver import FAILURE, OUTCOME, RECORDS
from rayfuse.tune.search import Strategy, Suggestions
from rayfuse.tune.trials import JOURNAL, State, Trial, Trials

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

Track = Callable[[Trial], Tracker]
"""Opens the trial's run in MLflow."""


class Recorder(Callback):
    """Hears what happens to each trial, in Tune's thread; after `close` it hears nothing more."""

    def __init__(
        self,
        trials: Trials,
        suggestions: Suggestions,
        strategy: Strategy,
        track: Track,
        say: Callable[[str], None],
    ) -> None:
        self._trials, self._suggestions, self._strategy = trials, suggestions, strategy
        self._track, self._say = track, say
        self._trackers: dict[int, Tracker] = {}
        self._before: dict[int, float] = {}
        self._rooms: dict[int, str] = {}
        self._lock = RLock()
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles all that it is given, for a restore that never comes."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: "TuneTrial", **info: Any) -> None:
        with self._lock:
            if not self._closed:
                known = self._known(trial)
                self._before.setdefault(known.number, known.seconds)
                self._tracker(known)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: "TuneTrial", result: dict[str, Any], **info: Any
    ) -> None:
        with self._lock:
            if self._closed:
                return
            known, records = self._known(trial), result.get(RECORDS, [])
            for record in records:
                self._note(known, record)
            if OUTCOME in result:
                known.history, known.state = result[OUTCOME]["history"], "finished"
            if FAILURE in result:
                known.error, known.state = result[FAILURE], "failed"
            self._save(known)
            tracker = self._tracker(known)
            if tracker:
                tracker.log(records)
            else:
                journal = Journal(self._trials.run(known).path(JOURNAL))
                journal.append(records)
                journal.close()

    def on_trial_complete(self, iteration: int, trials: Any, trial: "TuneTrial", **info: Any) -> None:
        with self._lock:
            if not self._closed:
                known = self._known(trial)
                self._end(known, "stopped" if known.state == "running" else known.state)

    def on_trial_error(self, iteration: int, trials: Any, trial: "TuneTrial", **info: Any) -> None:
        with self._lock:
            if not self._closed:
                known = self._known(trial)
                known.error = _reason(trial)
                self._end(known, "failed")

    def close(self, interrupted: bool = False) -> None:
        """Hear nothing more; trials that still run are left to the next driver, or are stopped for good."""
        with self._lock:
            self._closed = True
            for number, tracker in list(self._trackers.items()):
                known = self._trials.get(number)
                assert known is not None
                if known.state != "running":  # its last word was heard already
                    self._end(known, known.state)
                elif interrupted:
                    self._save(known)
                    tracker.finish("KILLED")
                else:
                    self._end(known, "stopped")

    def _known(self, trial: "TuneTrial") -> Trial:
        known = self._trials.get(trial.config["number"])
        assert known is not None
        return known

    def _note(self, trial: Trial, record: dict[str, Any]) -> None:
        if "room" in record:
            self._rooms[trial.number] = record["room"]
        if "started" in record and trial.overhead is None:
            trial.overhead = record["time"] - self._suggestions.asked[trial.number]
        if "epoch" in record:
            metrics = {name.removeprefix("validation/"): value for name, value in record["metrics"].items()}
            trial.history[record["epoch"] - 1 :] = [metrics]

    def _clear_room(self, trial: Trial) -> None:
        """End the workers of a trial that was stopped or died: they would train on, and keep their room.

        Ray Train asks the dashboard which of its controllers have died, and finds none without a dashboard or where
        several clusters run on one machine.
        """
        from ray import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        room = self._rooms.pop(trial.number, None)
        if room is not None:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(room))))

    def _save(self, trial: Trial) -> None:
        since = self._suggestions.asked[trial.number]
        trial.seconds = self._before.get(trial.number, 0.0) + time.time() - since
        self._trials.save(trial)

    def _end(self, trial: Trial, state: State) -> None:
        trial.state = state
        self._save(trial)
        self._clear_room(trial)
        self._strategy.tell(trial)
        tracker = self._trackers.pop(trial.number, None)
        if tracker is None:
            return
        try:
            trial.sent = finish(tracker, trial)
            self._trials.save(trial)
        except NotReachable as error:
            self._say(f"trial {trial.number}: {error}")

    def _tracker(self, trial: Trial) -> Tracker | None:
        """The trial's run in MLflow; None while MLflow does not answer, and then it gets all of it later."""
        if trial.number not in self._trackers:
            try:
                tracker = self._track(trial)
            except NotReachable as error:
                self._say(f"trial {trial.number} is not in MLflow yet: {error}")
                return None
            tracker.resend()
            self._trackers[trial.number] = tracker
            trial.run_id = tracker.run_id
            self._trials.save(trial)
        return self._trackers[trial.number]


def finish(tracker: Tracker, trial: Trial) -> bool:
    """End the trial's run in MLflow; whether all of it is there. Raises NotReachable as `Tracker.finish` does."""
    tracker.tag("rayfuse.trial", str(trial.number))
    tracker.tag("rayfuse.trial.state", trial.state)
    if trial.error:
        tracker.tag("rayfuse.trial.error", trial.error)
    return tracker.finish("FAILED" if trial.state == "failed" else "FINISHED")


def _reason(trial: "TuneTrial") -> str:
    error = trial.get_error()
    text = str(explain(error)) if error else "it died without a word"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
