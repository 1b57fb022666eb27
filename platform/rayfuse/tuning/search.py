"""Search strategies (random, grid, Optuna), and the Ray Tune searcher over them."""

import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.search import Searcher

from rayfuse.spec.search_space import SearchSpace, Values
from rayfuse.spec.sweep import GridSearch, OptunaSearch, Parameter, RandomSearch
from rayfuse.tuning.memory_limit import EstimateMemory, MemoryLimit
from rayfuse.tuning.trials import Trial, Trials

if TYPE_CHECKING:
    import optuna


class Strategy(Protocol):
    """A search strategy."""

    num_trials: int
    """Number of trials of the whole sweep."""

    def suggest(self, number: int, attempt: int = 0) -> Values:
        """Return values for the trial of this number, counted from 1; others for another `attempt`, if there are any."""

    def observe(self, trial: Trial) -> None:
        """Use the result of an ended trial, of this driver or an earlier one."""


class RandomStrategy:
    """Random search. Values depend on the seed, the trial's number and the attempt, so that a resumed sweep is the same."""

    def __init__(self, space: SearchSpace, search: RandomSearch) -> None:
        self.num_trials = search.trials
        self._space, self._seed = space, search.seed

    def suggest(self, number: int, attempt: int = 0) -> Values:
        """Sample values for the trial of this number."""
        return self._space.sample(_random_sampler(_seeded(self._seed, number, attempt)))

    def observe(self, trial: Trial) -> None:
        """Do nothing."""


class GridStrategy:
    """Grid search: every cell of the grid; parameters other than `grid` are sampled for each."""

    def __init__(self, space: SearchSpace, search: GridSearch) -> None:
        self._cells = space.grid()
        self.num_trials = len(self._cells) * search.repeats
        self._space, self._seed = space, search.seed

    def suggest(self, number: int, attempt: int = 0) -> Values:
        """Return a cell of the grid, with the other parameters sampled."""
        cell = self._cells[(number - 1) % len(self._cells)]
        draw = _random_sampler(_seeded(self._seed, number, attempt))
        return self._space.sample(
            lambda path, parameter: cell[path] if path in cell else draw(path, parameter)
        )

    def observe(self, trial: Trial) -> None:
        """Do nothing."""


class OptunaStrategy:
    """Optuna's TPE sampler (Bergstra et al., 2011). On resume its study is rebuilt from the stored trials."""

    def __init__(self, space: SearchSpace, search: OptunaSearch) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.num_trials = search.trials
        self._space = space
        self._pending: dict[int, list[tuple[optuna.trial.Trial, Values]]] = {}
        self.n_startup_trials = min(search.n_startup_trials, max(1, search.trials // 3))
        """Number of random trials."""
        self.study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=self.n_startup_trials),
            direction="maximize" if space.mode == "max" else "minimize",
        )

    def suggest(self, number: int, attempt: int = 0) -> Values:
        """Return values suggested by the study."""
        trial = self.study.ask()
        values = self._space.sample(lambda path, parameter: _suggest(trial, path, parameter))
        self._pending.setdefault(number, []).append((trial, values))
        return values

    def observe(self, trial: Trial) -> None:
        """Report a trial's epochs and result to the study.

        A stopped trial counts as pruned, and one that ran out of memory as pruned before all others, so that the
        estimator avoids its neighbors.
        """
        from optuna.trial import TrialState

        optuna_trial = self._pop_pending(trial) or self._replay(trial)
        metric = self._space.sweep.metric
        value = trial.best_value(metric, self._space.mode)
        if trial.out_of_memory:
            self.study.tell(optuna_trial, state=TrialState.PRUNED)  # codespell:ignore tell
            return
        for epoch, metrics in enumerate(trial.history, start=1):
            if metrics.get(metric) is not None:
                optuna_trial.report(metrics[metric], epoch)
        if trial.state == "finished" and value is not None:
            self.study.tell(optuna_trial, value)  # codespell:ignore tell
        else:
            pruned = trial.state == "stopped" and value is not None
            state = TrialState.PRUNED if pruned else TrialState.FAIL
            self.study.tell(optuna_trial, state=state)  # codespell:ignore tell

    def _pop_pending(self, trial: Trial) -> "optuna.trial.Trial | None":
        """Return the study's trial with the values of a trial of this driver; end those of its other attempts."""
        from optuna.trial import TrialState

        found = None
        for optuna_trial, values in self._pending.pop(trial.number, []):
            if found is None and values == trial.values:
                found = optuna_trial
            else:
                self.study.tell(optuna_trial, state=TrialState.FAIL)  # codespell:ignore tell
        return found

    def _replay(self, trial: Trial) -> "optuna.trial.Trial":
        """Create the study's trial for the values of a trial of an earlier driver."""
        params: dict[str, Any] = {}

        def record(path: str, parameter: Parameter) -> Any:
            value = trial.values[path]
            params[path] = value if parameter.values is None else parameter.values.index(value)
            return value

        self._space.sample(record)
        self.study.enqueue_trial(params)
        optuna_trial = self.study.ask()
        self._space.sample(lambda path, parameter: _suggest(optuna_trial, path, parameter))
        return optuna_trial


def create_strategy(space: SearchSpace) -> Strategy:
    """Create the strategy that the sweep names."""
    search = space.sweep.search
    if isinstance(search, GridSearch):
        return GridStrategy(space, search)
    return (
        OptunaStrategy(space, search) if isinstance(search, OptunaSearch) else RandomStrategy(space, search)
    )


def _seeded(seed: int, number: int, attempt: int) -> random.Random:
    return random.Random(f"{seed} {number} {attempt}" if attempt else f"{seed} {number}")


def _random_sampler(rng: random.Random) -> Callable[[str, Parameter], Any]:
    def draw(path: str, parameter: Parameter) -> Any:
        if parameter.values is not None:
            return rng.choice(parameter.values)
        if parameter.uniform is not None:
            return rng.uniform(*parameter.uniform)
        if parameter.loguniform is not None:
            low, high = parameter.loguniform
            return low * (high / low) ** rng.random()
        assert parameter.int is not None
        return rng.randint(*parameter.int)

    return draw


def _suggest(trial: "optuna.trial.Trial", path: str, parameter: Parameter) -> Any:
    """Suggest a value; Optuna takes no mappings as categories, so it gets their indices."""
    if parameter.values is not None:
        return parameter.values[trial.suggest_categorical(path, range(len(parameter.values)))]
    if parameter.int is not None:
        return trial.suggest_int(path, *parameter.int)
    if parameter.loguniform is not None:
        return trial.suggest_float(path, *parameter.loguniform, log=True)
    assert parameter.uniform is not None
    return trial.suggest_float(path, *parameter.uniform)


class ResumableSearcher(Searcher):
    """Ray Tune searcher over the remaining trials: first those that an earlier driver started, then new ones.

    `prepare` returns the configuration of Tune's trial for one of ours. After a trial that ran out of memory, values that
    need less are preferred.
    """

    def __init__(
        self,
        strategy: Strategy,
        trials: Trials,
        prepare: Callable[[Trial], dict[str, Any]],
        metric: str,
        mode: str,
        estimate_memory: EstimateMemory = lambda values: None,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._memory_limit = MemoryLimit(trials, estimate_memory)
        self._strategy, self._trials, self._prepare = strategy, trials, prepare
        self._remaining = self._remaining_numbers()
        self._closed = False
        self.suggested_at: dict[int, float] = {}
        """Time of each trial's suggestion, in seconds since the epoch."""
        for trial in trials:
            if trial.ended:
                strategy.observe(trial)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, as `Recorder` does."""
        return {}

    @property
    def num_remaining(self) -> int:
        """Number of trials that have not ended."""
        return sum(1 for _ in self._remaining_numbers())

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next trial, or `Searcher.FINISHED`."""
        number = None if self._closed else next(self._remaining, None)
        if number is None:
            return Searcher.FINISHED
        self.suggested_at[number] = time.time()
        trial = self._trials.get(number) or Trial(number, self._choose_values(number))
        return self._prepare(trial)

    def _choose_values(self, number: int) -> Values:
        return self._memory_limit.choose(lambda attempt: self._strategy.suggest(number, attempt))

    def close(self) -> None:
        """Suggest no further trials."""
        self._closed = True

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: the recorder, which has the state of each trial, reports to the strategy."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from its stored trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""

    def _remaining_numbers(self) -> Iterator[int]:
        begun = [trial.number for trial in self._trials if not trial.ended]
        new = [n for n in range(1, self._strategy.num_trials + 1) if self._trials.get(n) is None]
        return iter(begun + new)
