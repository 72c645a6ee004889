"""What the reference calls `model.base_model`: the tuner, with all that can be asked of it."""

from __future__ import annotations

from ..combine.low_rank_form import Retained
from ..combine.offer import Combination
from ..combine.weighted import add_weighted_adapter
from ..hosts.tuner import Tuner


class BaseTuner(Tuner):
    """Holds the user's model as `model`, and every adapter's config in `peft_config`."""

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: str = "total",
    ) -> Retained:
        """Combine adapters into a new one, neither active nor trainable.

        Args:
            adapters: names of loaded adapters.
            weights: a finite number for each.
            adapter_name: the new one's name.
            combination_type: `cat` puts the factors side by side and `svd` cuts the weighted sum of the updates ΔW to
                `svd_rank`: both mean that sum. `linear`, `ties`, `dare_linear`, `dare_ties` and `magnitude_prune`
                combine A and B each by themselves, which does not; with `_svd` they combine the updates. The `svd`
                kinds take adapters of any method with a ΔW. IA³'s factors are always combined linearly.
            svd_rank: the largest rank of the adapters if None.
            svd_clamp: clamp the factors to this quantile of theirs.
            svd_full_matrices: accepted for the reference's sake; the result is the same.
            svd_driver: for `torch.linalg.svd`, on GPUs.
            density: the share of elements that `ties`, `dare` and `magnitude_prune` keep.
            majority_sign_method: of `ties`: "total" or "frequency".

        Returns:
            For each layer, how much of ||ΔW||² the new adapter keeps: for the `svd` kinds of what was combined, for the
            others of the weighted sum.

        Raises:
            NameTakenError, ConfigError, NotMergeable, MergeError: nothing was changed.
        """
        what = Combination(combination_type, density, majority_sign_method, svd_rank, svd_clamp, svd_driver)
        with self.scope.users.changing():
            return add_weighted_adapter(self, self.model, self.peft_config, adapters, weights, adapter_name, what)
