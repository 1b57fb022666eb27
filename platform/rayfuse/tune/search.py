"""Which values the next trial gets: the three ways to search, and what Ray Tune asks for them."""

import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.search import Searcher

from rayfuse.spec.space import Space, Values
from rayfuse.spec.sweep import GridSearch, OptunaSearch, Parameter, RandomSearch
from rayfuse.tune.trials import Trial, Trials

if TYPE_CHECKING:
    import optuna


class Strategy(Protocol):
    """A way to search."""

    trials: int
    """How many trials it wants."""

    def ask(self, number: int) -> Values:
        """Values for the trial of this number, counted from 1."""

    def tell(self, trial: Trial) -> None:
        """Learn from a trial that has ended, of this driver or one before."""


class RandomDraws:
    """Draws that depend on the seed and the number of the trial alone, so that a sweep goes on as it began."""

    def __init__(self, space: Space, search: RandomSearch) -> None:
        self.trials = search.trials
        self._space, self._seed = space, search.seed

    def ask(self, number: int) -> Values:
        return self._space.draw(_drawing(random.Random(f"{self._seed} {number}")))

    def tell(self, trial: Trial) -> None:
        pass


class GridCells:
    """Every cell of the grid; what is no `grid` parameter is drawn for each."""

    def __init__(self, space: Space, search: GridSearch) -> None:
        self._cells = space.grid()
        self.trials = len(self._cells) * search.repeats
        self._space, self._seed = space, search.seed

    def ask(self, number: int) -> Values:
        cell = self._cells[(number - 1) % len(self._cells)]
        draw = _drawing(random.Random(f"{self._seed} {number}"))
        return self._space.draw(lambda path, parameter: cell[path] if path in cell else draw(path, parameter))

    def tell(self, trial: Trial) -> None:
        pass


class OptunaStudy:
    """Optuna's TPE, asked and told one trial at a time; its study is rebuilt from the trials that are known."""

    def __init__(self, space: Space, search: OptunaSearch) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.trials = search.trials
        self._space = space
        self._asked: dict[int, optuna.trial.Trial] = {}
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=search.startup),
            direction="maximize" if space.mode == "max" else "minimize",
        )

    def ask(self, number: int) -> Values:
        trial = self._study.ask()
        self._asked[number] = trial
        return self._space.draw(lambda path, parameter: _suggest(trial, path, parameter))

    def tell(self, trial: Trial) -> None:
        import optuna

        asked = self._asked.pop(trial.number, None) or self._repeat(trial)
        metric = self._space.sweep.metric
        for epoch, metrics in enumerate(trial.history, start=1):
            if metrics.get(metric) is not None:
                asked.report(metrics[metric], epoch)
        value = trial.best(metric, self._space.mode)
        if trial.state == "finished" and value is not None:
            self._study.tell(asked, value)
        else:
            pruned = trial.state == "stopped" and value is not None
            state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL
            self._study.tell(asked, state=state)

    def _repeat(self, trial: Trial) -> "optuna.trial.Trial":
        """Ask for the values that a trial of an earlier driver had."""
        params: dict[str, Any] = {}

        def remember(path: str, parameter: Parameter) -> Any:
            value = trial.values[path]
            params[path] = value if parameter.values is None else parameter.values.index(value)
            return value

        self._space.draw(remember)
        self._study.enqueue_trial(params)
        asked = self._study.ask()
        self._space.draw(lambda path, parameter: _suggest(asked, path, parameter))
        return asked


def strategy(space: Space) -> Strategy:
    """The way to search that the sweep names."""
    search = space.sweep.search
    if isinstance(search, GridSearch):
        return GridCells(space, search)
    return OptunaStudy(space, search) if isinstance(search, OptunaSearch) else RandomDraws(space, search)


def _drawing(chance: random.Random) -> Callable[[str, Parameter], Any]:
    def draw(path: str, parameter: Parameter) -> Any:
        if parameter.values is not None:
            return chance.choice(parameter.values)
        if parameter.uniform is not None:
            return chance.uniform(*parameter.uniform)
        if parameter.loguniform is not None:
            low, high = parameter.loguniform
            return low * (high / low) ** chance.random()
        assert parameter.int is not None
        return chance.randint(*parameter.int)

    return draw


def _suggest(trial: "optuna.trial.Trial", path: str, parameter: Parameter) -> Any:
    """Categories go to Optuna by their number: it takes no mappings."""
    if parameter.values is not None:
        return parameter.values[trial.suggest_categorical(path, range(len(parameter.values)))]
    if parameter.int is not None:
        return trial.suggest_int(path, *parameter.int)
    if parameter.loguniform is not None:
        return trial.suggest_float(path, *parameter.loguniform, log=True)
    assert parameter.uniform is not None
    return trial.suggest_float(path, *parameter.uniform)


class Suggestions(Searcher):
    """Gives Ray Tune the trials that are left: first those that an earlier driver began, then new ones.

    `prepare` turns a trial into the configuration of Tune's trial.
    """

    def __init__(
        self,
        ways: Strategy,
        trials: Trials,
        prepare: Callable[[Trial], dict[str, Any]],
        metric: str,
        mode: str,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._strategy, self._trials, self._prepare = ways, trials, prepare
        self._left = self._numbers()
        self.asked: dict[int, float] = {}
        """When each trial was asked for, in seconds since the epoch."""
        for trial in trials:
            if trial.ended:
                ways.tell(trial)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the recorder."""
        return {}

    @property
    def count(self) -> int:
        """How many trials are to be run."""
        return sum(1 for _ in self._numbers())

    def suggest(self, trial_id: str) -> Any:
        number = next(self._left, None)
        if number is None:
            return Searcher.FINISHED
        self.asked[number] = time.time()
        trial = self._trials.get(number) or Trial(number, self._strategy.ask(number))
        return self._prepare(trial)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: the recorder tells the strategy, because it knows how a trial ended."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all that is needed to go on is in the trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as for `save`."""

    def _numbers(self) -> Iterator[int]:
        begun = [trial.number for trial in self._trials if not trial.ended]
        new = [n for n in range(1, self._strategy.trials + 1) if self._trials.get(n) is None]
        return iter(begun + new)
