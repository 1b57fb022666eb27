"""Search strategies (random, grid, Optuna), and the Ray Tune searcher over them."""

import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.search import Searcher

from rayfuse.spec.search_space import SearchSpace, Values
from rayfuse.spec.sweep import GridSearch, OptunaSearch, Parameter, RandomSearch
from rayfuse.tuning.trials import Trial, Trials

if TYPE_CHECKING:
    import optuna


class Strategy(Protocol):
    """A search strategy."""

    num_trials: int
    """Number of trials of the whole sweep."""

    def suggest(self, number: int) -> Values:
        """Return values for the trial of this number, counted from 1."""

    def observe(self, trial: Trial) -> None:
        """Use the result of an ended trial, of this driver or an earlier one."""


class RandomStrategy:
    """Random search. Values depend on the seed and the number of the trial alone, so that a resumed sweep is the same."""

    def __init__(self, space: SearchSpace, search: RandomSearch) -> None:
        self.num_trials = search.trials
        self._space, self._seed = space, search.seed

    def suggest(self, number: int) -> Values:
        """Sample values for the trial of this number."""
        return self._space.sample(_random_sampler(random.Random(f"{self._seed} {number}")))

    def observe(self, trial: Trial) -> None:
        """Do nothing."""


class GridStrategy:
    """Grid search: every cell of the grid; parameters other than `grid` are sampled for each."""

    def __init__(self, space: SearchSpace, search: GridSearch) -> None:
        self._cells = space.grid()
        self.num_trials = len(self._cells) * search.repeats
        self._space, self._seed = space, search.seed

    def suggest(self, number: int) -> Values:
        """Return a cell of the grid, with the other parameters sampled."""
        cell = self._cells[(number - 1) % len(self._cells)]
        draw = _random_sampler(random.Random(f"{self._seed} {number}"))
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
        self._pending: dict[int, optuna.trial.Trial] = {}
        self.study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=search.n_startup_trials),
            direction="maximize" if space.mode == "max" else "minimize",
        )

    def suggest(self, number: int) -> Values:
        """Return values suggested by the study."""
        trial = self.study.ask()
        self._pending[number] = trial
        return self._space.sample(lambda path, parameter: _suggest(trial, path, parameter))

    def observe(self, trial: Trial) -> None:
        """Report a trial's epochs and result to the study; a stopped trial counts as pruned."""
        import optuna

        optuna_trial = self._pending.pop(trial.number, None) or self._replay(trial)
        metric = self._space.sweep.metric
        for epoch, metrics in enumerate(trial.history, start=1):
            if metrics.get(metric) is not None:
                optuna_trial.report(metrics[metric], epoch)
        value = trial.best_value(metric, self._space.mode)
        if trial.state == "finished" and value is not None:
            self.study.tell(optuna_trial, value)  # codespell:ignore tell
        else:
            pruned = trial.state == "stopped" and value is not None
            state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL
            self.study.tell(optuna_trial, state=state)  # codespell:ignore tell

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

    `prepare` returns the configuration of Tune's trial for one of ours.
    """

    def __init__(
        self,
        strategy: Strategy,
        trials: Trials,
        prepare: Callable[[Trial], dict[str, Any]],
        metric: str,
        mode: str,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._strategy, self._trials, self._prepare = strategy, trials, prepare
        self._remaining = self._remaining_numbers()
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
        number = next(self._remaining, None)
        if number is None:
            return Searcher.FINISHED
        self.suggested_at[number] = time.time()
        trial = self._trials.get(number) or Trial(number, self._strategy.suggest(number))
        return self._prepare(trial)

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
