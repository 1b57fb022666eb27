"""Ray Tune's scheduler of a sweep, with the results of trials of earlier drivers."""

from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from rayfuse.spec.search_space import SearchSpace
from rayfuse.spec.sweep import AshaScheduler
from rayfuse.tuning.trial_runner import EPOCH, VALUE
from rayfuse.tuning.trials import Trials


def build_scheduler(space: SearchSpace, trials: Trials) -> ASHAScheduler | None:
    """Build Ray Tune's scheduler with the results of ended trials; None if trials are never stopped early."""
    options = space.sweep.scheduler
    if not isinstance(options, AshaScheduler):
        return None
    max_epochs = max(space.trial_job(values).train.epochs for values in space.combinations())
    scheduler = _ValueAsha(
        time_attr=EPOCH,
        metric=VALUE,
        mode=space.mode,
        max_t=max_epochs,
        grace_period=min(options.grace_period, max_epochs),
        reduction_factor=options.reduction_factor,
        stop_last_trials=False,  # the summary of a trial follows its last epoch
    )
    for trial in trials:
        if trial.ended:
            replayed: Any = SimpleNamespace(trial_id=f"ended-{trial.number}")
            controller: Any = None
            scheduler.on_trial_add(controller, replayed)
            for epoch, metrics in enumerate(trial.history, start=1):
                result = {EPOCH: epoch, VALUE: metrics[space.sweep.metric]}
                scheduler.on_trial_result(controller, replayed, result)
    return scheduler


class _ValueAsha(ASHAScheduler):
    """ASHA on each epoch's value, while Tune's own metric is the best value so far."""

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True
